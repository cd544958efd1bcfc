#include "volume_files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>

#include "errors.h"

namespace vnet {
namespace fs = std::filesystem;
namespace {

DataError unreadable(const fs::path& path, const std::error_code& error) {
  return DataError(path.string() + ": cannot be read (" + error.message() +
                   "), expected what preprocess.py wrote: check the path and its permissions");
}

DataError unwritable(const fs::path& path, const std::error_code& error) {
  return DataError(
      path.string() + ": cannot be written (" + error.message() +
      "): check its name, and that its folder is a folder, allows writing and has space left");
}

// The names of temporary files, .vnet.PID.tmp, are short: what may have its name can be written.
constexpr char kTemporary[] = ".vnet";

// The error of the last stream operations; set errno to 0 before them.
std::error_code last_error() { return {errno != 0 ? errno : EIO, std::generic_category()}; }

}  // namespace

std::vector<fs::path> list_files(const fs::path& folder, const std::string& ending) {
  std::error_code error, ignored;
  std::vector<fs::path> files;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name[0] != '.' && name.size() > ending.size() &&
        name.compare(name.size() - ending.size(), ending.size(), ending) == 0 &&
        !entry->is_directory(ignored))
      files.push_back(entry->path());
  }
  if (error) throw unreadable(folder, error);
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<fs::path> list_volumes(const fs::path& folder) {
  const auto volumes = list_files(folder, ".bin");
  if (volumes.empty())
    throw DataError(folder.string() + ": has no .bin file, expected one for each case: run " +
                    "preprocess.py first");
  return volumes;
}

size_t size_bytes(const fs::path& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) throw unreadable(file, error);
  return size;
}

void read_file(const fs::path& file, void* data, size_t size) {
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(static_cast<char*>(data), static_cast<std::streamsize>(size)))
    throw unreadable(file, last_error());
}

std::string read_text(const fs::path& file) {
  std::error_code ignored;
  if (!fs::is_regular_file(file, ignored)) return "";
  std::string text(size_bytes(file), '\0');
  read_file(file, text.data(), text.size());
  return text;
}

void write_file(const fs::path& file, const void* data, size_t size) {
  const fs::path temporary =
      file.parent_path() / (kTemporary + ("." + std::to_string(getpid()) + ".tmp"));
  errno = 0;
  std::ofstream stream(temporary, std::ios::binary);
  stream.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  stream.close();
  std::error_code error;
  if (!stream)
    error = last_error();
  else
    fs::rename(temporary, file, error);
  if (error) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw unwritable(file, error);
  }
}

bool remove_file(const fs::path& file) {
  std::error_code error;
  const bool found = fs::remove(file, error);
  if (error) throw unwritable(file, error);
  return found;
}

bool exists_or_link(const fs::path& file) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(file, ignored));
}

void require_replaceable(const fs::path& file) {
  std::error_code error;
  const fs::file_type type = fs::status(file, error).type();
  if (type == fs::file_type::directory) error = std::make_error_code(std::errc::is_a_directory);
  if (error && type != fs::file_type::not_found) throw unwritable(file, error);
}

void make_folder(const fs::path& folder) {
  std::error_code error, ignored;
  fs::create_directories(folder, error);
  if (error) throw unwritable(folder, error);
  for (fs::directory_iterator entry(folder, ignored), end; entry != end; entry.increment(ignored)) {
    const fs::path name = entry->path().stem(), process = name.extension();
    if (entry->path().extension() == ".tmp" && name.stem() == kTemporary && !process.empty() &&
        !fs::exists("/proc/" + process.string().substr(1), ignored))
      fs::remove(entry->path(), ignored);
  }
}

}  // namespace vnet
