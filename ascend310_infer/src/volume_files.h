// Files of raw float32 numbers, one for each case.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

namespace vnet {

// The files of a folder whose names have this ending, sorted, without hidden ones. Throws DataError
// if it cannot be read.
std::vector<std::filesystem::path> list_files(const std::filesystem::path& folder,
                                              const std::string& ending);

// The files NAME.bin of a folder. Throws DataError if there are none.
std::vector<std::filesystem::path> list_volumes(const std::filesystem::path& folder);

// The size of a file. Throws DataError if it cannot be read.
size_t size_bytes(const std::filesystem::path& file);

// Reads the first `size` bytes. Throws DataError if there are fewer.
void read_file(const std::filesystem::path& file, void* data, size_t size);

// The content of a small text file. Empty if there is none; throws DataError if it cannot be read.
std::string read_text(const std::filesystem::path& file);

// Writes a file atomically. Throws DataError if it cannot be written.
void write_file(const std::filesystem::path& file, const void* data, size_t size);

// Removes a file; returns whether there was one. Throws DataError if it cannot be removed.
bool remove_file(const std::filesystem::path& file);

// Whether there is anything of this name, a link to nothing included.
bool exists_or_link(const std::filesystem::path& file);

// Throws DataError if no file can have this name: a folder has it, or it is too long.
void require_replaceable(const std::filesystem::path& file);

// Creates a folder and its parents, unless it exists, and removes what a killed process left of a
// file half written there. Throws DataError.
void make_folder(const std::filesystem::path& folder);

}  // namespace vnet
