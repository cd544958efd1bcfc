// Runs an exported V-Net over the volumes that preprocess.py wrote, on an Ascend device or a CPU:
//   out/main --mindir_path vnet.vnet --device_type CPU
// postprocess.py computes masks from its outputs. --help lists the flags.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <iomanip>
#include <iostream>
#include <new>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "errors.h"
#include "inference.h"
#include "options.h"
#include "volume_files.h"

namespace vnet {
namespace {

std::string one_decimal(double value) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(1) << value;
  return text.str();
}

// The output file of a volume.
std::filesystem::path output_of(const std::filesystem::path& volume, const Options& options) {
  return options.output_path / (volume.stem().string() + "_0.bin");
}

// The description beside a model: that of NAME_lite.mindir may be NAME.json. Empty if there is
// none.
std::string description_of(const std::filesystem::path& model) {
  std::string name = model.stem().string();
  if (!std::filesystem::exists(model.parent_path() / (name + ".json")) && name.size() > 5 &&
      name.compare(name.size() - 5, 5, "_lite") == 0)
    name.resize(name.size() - 5);
  return read_text(model.parent_path() / (name + ".json"));
}

// The value of a key in a description, as text up to one of `ends`; empty if it has none.
std::string value_of(const std::string& description, const std::string& key, const char* ends) {
  const std::string start = "\"" + key + "\": ";
  const auto found = description.find(start);
  if (found == std::string::npos) return "";
  const auto first = found + start.size();
  return description.substr(first, description.find_first_of(ends, first) - first);
}

// The record of a volume or a result, beside it.
std::filesystem::path record_path(const std::filesystem::path& file) {
  return std::filesystem::path(file).replace_extension(".json");
}

// What preprocess.py recorded about a volume, the hash of its image among it, or the copy beside
// its result; empty if there is no such record.
std::string record_of(const std::filesystem::path& file) {
  const std::string record = read_text(record_path(file));
  return value_of(record, "image_sha256", ",\n}").empty() ? "" : record;
}

// The network grid and intensities of a description, or of the record of a volume.
std::string grid_of(const std::string& description) {
  return value_of(description, "VolSize", "]") + value_of(description, "dstRes", "]") +
         value_of(description, "normDir", ",\n}") + value_of(description, "intensity", ",\n}");
}

// Throws DataError for a volume that preprocess.py wrote for another network grid than the model's.
void check_grids(const Options& options, const std::vector<std::filesystem::path>& volumes) {
  const std::string expected = grid_of(description_of(options.mindir_path));
  for (const auto& volume : volumes) {
    const std::string grid = grid_of(record_of(volume));
    if (!grid.empty() && !expected.empty() && grid != expected)
      throw DataError(record_path(volume).string() + ": a volume of another network grid than " +
                      "that of " + options.mindir_path.string() + ", expected its VolSize, " +
                      "dstRes, normDir and intensity: run preprocess.py with this model");
  }
}

// Throws DataError if something else has the name of a result or of its record.
void check_replaceable(const std::filesystem::path& output) {
  require_no_folder(output);
  if (std::filesystem::exists(record_path(output)) && record_of(output).empty())
    throw DataError(record_path(output).string() + ": not written by this program, expected the " +
                    "record of " + output.filename().string() +
                    ": move it away, or choose another --output_path");
}

// Removes a result and its record; returns whether there was a result.
bool remove_result(const std::filesystem::path& output) {
  remove_file(record_path(output));
  return remove_file(output);
}

// What decides the results of a model: checkpoint and network grid; without the former the
// description itself. A model that is exported in a further format stays the same.
std::string model_of(const std::string& description) {
  const std::string checkpoint = value_of(description, "checkpoint_sha256", ",\n}");
  return checkpoint.empty() ? description : checkpoint + grid_of(description);
}

// Copies the model's description into the folder of the results, so that postprocess.py can tell
// them from those of another model, and removes what is there of another model. Throws DataError
// for what this program may not have written, or if it is not known of which model the others are.
void record_model(const Options& options, const std::vector<std::filesystem::path>& volumes) {
  const auto record = options.output_path / "model.json";
  const std::string description = description_of(options.mindir_path);
  const std::string earlier = read_text(record);
  if (model_of(earlier) != model_of(description)) {
    std::set<std::filesystem::path> written;  // by this run, which replaces what is there
    for (const auto& volume : volumes) written.insert(output_of(volume, options));
    std::vector<std::filesystem::path> old;
    for (const auto& entry : std::filesystem::directory_iterator(options.output_path)) {
      const auto& path = entry.path();
      const std::string name = path.filename().string();
      if (name.size() <= 6 || name.compare(name.size() - 6, 6, "_0.bin") != 0 ||
          !entry.is_regular_file())
        continue;
      if (written.count(path) == 0 && (earlier.empty() || record_of(path).empty()))
        throw DataError(path.string() +
                        ": of unknown origin, expected only results of this program, of the model "
                        "in model.json: move it away, or choose another --output_path");
      old.push_back(path);
    }
    for (const auto& path : old) remove_result(path);
    if (!old.empty())
      std::cout << options.output_path.string() << ": removed " << old.size()
                << " result(s) of another model" << std::endl;
  }
  if (earlier == description) return;
  if (description.empty())
    remove_file(record);
  else
    write_file(record, description.data(), description.size());
}

void infer(const Options& options) {
  std::error_code ignored;  // if one of the folders does not exist
  if (std::filesystem::equivalent(options.dataset_path, options.output_path, ignored))
    throw UsageError("--output_path: found the folder of --dataset_path, expected another one");
  const auto volumes = list_volumes(options.dataset_path);
  check_grids(options, volumes);
  const auto network = load_network(options);
  for (const auto& volume : volumes) network->check(volume);
  const std::filesystem::path time_folder = "time_Result";
  make_folder(options.output_path);
  make_folder(time_folder);
  for (const auto& volume : volumes) check_replaceable(output_of(volume, options));
  record_model(options, volumes);
  // Where this run ends early, no result of an earlier one stays among the new ones.
  size_t replaced = 0;
  for (const auto& volume : volumes) replaced += remove_result(output_of(volume, options));
  if (replaced > 0)
    std::cout << options.output_path.string() << ": replacing " << replaced
              << " result(s) of an earlier run" << std::endl;

  double milliseconds = 0;
  for (const auto& volume : volumes) {
    const std::string record = record_of(volume);
    const Prediction prediction = network->run(volume);
    const auto output = output_of(volume, options);
    if (!record.empty()) write_file(record_path(output), record.data(), record.size());
    write_file(output, prediction.values.data(), prediction.values.size() * sizeof(float));
    std::cout << volume.string() << ": " << one_decimal(prediction.milliseconds) << " ms, "
              << output.string() << std::endl;
    milliseconds += prediction.milliseconds;
  }

  const auto count = volumes.size();
  const std::string summary =
      "NN inference cost average time: " + one_decimal(milliseconds / static_cast<double>(count)) +
      " ms of infer_count " + std::to_string(count) + "\n";
  write_file(time_folder / "test_perform_static.txt", summary.data(), summary.size());
  std::cout << summary << std::flush;
}

// Opens closed standard streams on /dev/null: otherwise the next file would get a stream's number,
// and messages would be written into it. Ignores SIGPIPE, so that the run continues when the reader
// of its output ends.
void prepare_streams() {
  int descriptor = 0;
  do descriptor = open("/dev/null", O_RDWR);
  while (descriptor >= 0 && descriptor <= STDERR_FILENO);
  if (descriptor >= 0) close(descriptor);
  std::signal(SIGPIPE, SIG_IGN);
}

// Prints an error as one line, also where it names a file with control characters.
void report(int descriptor, std::string message) {
  std::replace_if(
      message.begin(), message.end(), [](unsigned char c) { return std::iscntrl(c) != 0; }, '?');
  dprintf(descriptor, "error: %s\n", message.c_str());
}

}  // namespace
}  // namespace vnet

int main(int argc, char** argv) {
  vnet::prepare_streams();
  int errors = STDERR_FILENO;
  try {
    const auto options = vnet::parse_options({argv + 1, argv + argc});
    if (!options) {
      std::cout << vnet::kHelp;
      return 0;
    }
    vnet::enter_runtime(*options, argv);
    // MindSpore Lite logs to standard error, which is reserved for this program's error message:
    // its log is redirected to standard output.
    errors = dup(STDERR_FILENO);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    vnet::infer(*options);
    return 0;
  } catch (const vnet::UsageError& error) {
    vnet::report(errors, error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    vnet::report(errors, "out of memory: a model of a smaller grid or width needs less");
  } catch (const std::exception& error) {
    vnet::report(errors, error.what());
  } catch (...) {
    vnet::report(errors, "unknown error");
  }
  return 1;
}
