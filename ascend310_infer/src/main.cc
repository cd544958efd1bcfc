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

// Where the description beside a model is: that of NAME_lite.mindir may be NAME.json.
std::filesystem::path description_path(const std::filesystem::path& model) {
  std::string name = model.stem().string();
  std::error_code ignored;
  if (!std::filesystem::exists(model.parent_path() / (name + ".json"), ignored) &&
      name.size() > 5 && name.compare(name.size() - 5, 5, "_lite") == 0)
    name.resize(name.size() - 5);
  return model.parent_path() / (name + ".json");
}

// The value of a key in a description, a list or what ends at , or }, without white space; empty if
// it has none.
std::string value_of(std::string description, const std::string& key) {
  description.erase(std::remove_if(description.begin(), description.end(),
                                   [](unsigned char c) { return std::isspace(c) != 0; }),
                    description.end());
  const std::string start = "\"" + key + "\":";
  const auto found = description.find(start);
  if (found == std::string::npos) return "";
  const auto first = found + start.size();
  const auto end = description[first] == '[' ? description.find(']', first) + 1
                                             : description.find_first_of(",}", first);
  return description.substr(first, end - first);
}

// The record of a volume or a result, beside it.
std::filesystem::path record_path(const std::filesystem::path& file) {
  return std::filesystem::path(file).replace_extension(".json");
}

// What preprocess.py recorded about a volume, the hash of its image among it, or the copy beside
// its result; empty if there is no such record.
std::string record_of(const std::filesystem::path& file) {
  const std::string record = read_text(record_path(file));
  return value_of(record, "image_sha256").empty() ? "" : record;
}

// The network grid and intensities of a description, or of the record of a volume.
std::string grid_of(const std::string& description) {
  return value_of(description, "VolSize") + value_of(description, "dstRes") +
         value_of(description, "normDir") + value_of(description, "intensity");
}

// Throws DataError if the description of a model has another network grid than the model, or the
// record of a volume another than the description. The description may be empty.
void check_grids(const Options& options, const std::string& description, const Network& network,
                 const std::vector<std::filesystem::path>& volumes) {
  if (description.empty()) return;
  const std::string sides = value_of(description, "VolSize");
  if (sides != network.grid())
    throw DataError(description_path(options.mindir_path).string() + ": found " +
                    (sides.empty() ? "no VolSize" : "VolSize " + sides) + ", expected " +
                    network.grid() + ", the grid of " + options.mindir_path.string() +
                    ": export both again with export.py");
  for (const auto& volume : volumes) {
    const std::string grid = grid_of(record_of(volume));
    if (!grid.empty() && grid != grid_of(description))
      throw DataError(record_path(volume).string() + ": a volume of another network grid than " +
                      "that of " + options.mindir_path.string() + ", expected its VolSize, " +
                      "dstRes, normDir and intensity: run preprocess.py with this model");
  }
}

// The error of a file that is in the way of the results.
DataError in_the_way(const std::filesystem::path& file, const std::string& found,
                     const std::string& expected) {
  return DataError(file.string() + ": " + found + ", expected " + expected +
                   ": move it away, or choose another --output_path");
}

// Throws DataError if a result or its record cannot have its name, or something else has it.
void check_replaceable(const std::filesystem::path& output) {
  require_replaceable(output);
  require_replaceable(record_path(output));
  if (exists_or_link(record_path(output)) && record_of(output).empty())
    throw in_the_way(record_path(output), "not written by this program",
                     "the record of " + output.filename().string());
}

// Removes a result and its record; returns whether there was a result.
bool remove_result(const std::filesystem::path& output) {
  remove_file(record_path(output));
  return remove_file(output);
}

// Writes a result and, unless it is empty, its record; neither stays without the other.
void write_result(const std::filesystem::path& output, const std::vector<float>& values,
                  const std::string& record) {
  if (!record.empty()) write_file(record_path(output), record.data(), record.size());
  try {
    write_file(output, values.data(), values.size() * sizeof(float));
  } catch (const DataError&) {
    remove_file(record_path(output));
    throw;
  }
}

// What decides the results of a model: checkpoint and network grid; without the former the
// description itself. A model that is exported in a further format stays the same.
std::string model_of(const std::string& description) {
  const std::string checkpoint = value_of(description, "checkpoint_sha256");
  return checkpoint.empty() ? description : checkpoint + grid_of(description);
}

// The description of the model of the results, beside them, by which postprocess.py can tell them
// from those of another model.
std::filesystem::path model_record(const Options& options) {
  return options.output_path / "model.json";
}

// Removes the results of another model. Throws DataError, before, for what this program may not
// have written, and if it is not known of which model the results of other volumes are.
void remove_other_models(const Options& options, const std::string& description,
                         const std::vector<std::filesystem::path>& volumes) {
  const auto record = model_record(options);
  const std::string earlier = read_text(record);
  if (model_of(earlier) == model_of(description)) return;
  std::set<std::filesystem::path> written;  // by this run, which replaces what is there
  for (const auto& volume : volumes) written.insert(output_of(volume, options));
  const auto old = list_files(options.output_path, "_0.bin");
  for (const auto& path : old)
    if (written.count(path) == 0 && (earlier.empty() || record_of(path).empty()))
      throw in_the_way(path, "of unknown origin",
                       "only results of this program, of the model in model.json");
  if (exists_or_link(record) && (old.empty() || grid_of(earlier).empty()))
    throw in_the_way(record, "of unknown origin",
                     "the description of the model of the results beside it");
  for (const auto& path : old) remove_result(path);
  if (!old.empty())
    std::cout << options.output_path.string() << ": removed " << old.size()
              << " result(s) of another model" << std::endl;
  remove_file(record);
}

void infer(const Options& options) {
  std::error_code ignored;  // if one of the folders does not exist
  if (std::filesystem::equivalent(options.dataset_path, options.output_path, ignored))
    throw UsageError("--output_path: found the folder of --dataset_path, expected another one");
  const auto volumes = list_volumes(options.dataset_path);
  const auto network = load_network(options);
  const std::string description = read_text(description_path(options.mindir_path));
  check_grids(options, description, *network, volumes);
  for (const auto& volume : volumes) network->check(volume);
  const std::filesystem::path times = "time_Result/test_perform_static.txt";
  make_folder(options.output_path);
  make_folder(times.parent_path());
  require_replaceable(times);
  for (const auto& volume : volumes) check_replaceable(output_of(volume, options));
  remove_other_models(options, description, volumes);
  // Where this run ends early, no result of an earlier one stays among the new ones.
  remove_file(times);
  size_t replaced = 0;
  for (const auto& volume : volumes) replaced += remove_result(output_of(volume, options));
  // A description without results would be of unknown origin to the next run.
  if (replaced > 0 && list_files(options.output_path, "_0.bin").empty() &&
      !std::filesystem::equivalent(model_record(options), description_path(options.mindir_path),
                                   ignored))
    remove_file(model_record(options));
  if (replaced > 0)
    std::cout << options.output_path.string() << ": replacing " << replaced
              << " result(s) of an earlier run" << std::endl;

  double milliseconds = 0;
  bool is_described = false;  // with the first result: no description lies there without any
  for (const auto& volume : volumes) {
    const std::string record = record_of(volume);
    const Prediction prediction = network->run(volume);
    const auto output = output_of(volume, options);
    if (!is_described && !description.empty())
      write_file(model_record(options), description.data(), description.size());
    is_described = true;
    write_result(output, prediction.values, record);
    std::cout << volume.string() << ": " << one_decimal(prediction.milliseconds) << " ms, "
              << output.string() << std::endl;
    milliseconds += prediction.milliseconds;
  }

  const auto count = volumes.size();
  const std::string summary =
      "NN inference cost average time: " + one_decimal(milliseconds / static_cast<double>(count)) +
      " ms of infer_count " + std::to_string(count) + "\n";
  write_file(times, summary.data(), summary.size());
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
