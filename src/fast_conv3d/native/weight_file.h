// The weight file that export.py writes for CPUs, NAME.vnet; docs/export.md describes its format.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "network.h"
#include "thread_pool.h"

namespace fast_conv3d {
namespace weight_file {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file's numbers are little-endian");

constexpr char kMagic[8] = {'V', 'N', 'E', 'T', 'C', 'P', 'U', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kAlignment = 64;  // of the arrays, in bytes

// The first bytes of the file.
struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;  // of header and table, to the first array
  uint64_t file_bytes;
  uint32_t crc;  // of header and table, computed with zero in its place
  uint32_t arrays;
  int32_t grid[3];  // X, Y, Z
  int32_t width;
  int32_t encoder_depths[kLevels];
  int32_t decoder_depths[kLevels - 1];
  int32_t activation;  // 1 ELU, 2 PReLU
  int32_t norm;        // 0 none, 1 batch, 2 instance
  int32_t activation_before_sum, encoder_bias, decoder_bias, up_bias;
  int32_t head_unit, head_side, head_bias, foreground;
  float epsilon;
};
static_assert(sizeof(Header) == 128, "as documented");

// An entry of the table that follows the header.
struct Entry {
  uint64_t offset;  // from the beginning of the file
  uint64_t floats;
  uint32_t crc;
  uint16_t layer;
  uint16_t parameter;
};
static_assert(sizeof(Entry) == 24, "as documented");

// CRC-32 of zlib, eight bytes at a time.
class Crc32 {
 public:
  static uint32_t of(const unsigned char* bytes, size_t count) {
    static const Crc32 crc;
    return crc.compute(bytes, count);
  }

 private:
  Crc32() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
      tables_[0][byte] = value;
    }
    for (int table = 1; table < 8; ++table)
      for (int byte = 0; byte < 256; ++byte) {
        const uint32_t before = tables_[table - 1][byte];
        tables_[table][byte] = (before >> 8) ^ tables_[0][before & 255];
      }
  }
  uint32_t compute(const unsigned char* bytes, size_t count) const {
    uint32_t value = ~0u;
    for (; count >= 8; bytes += 8, count -= 8) {
      uint32_t words[2];
      std::memcpy(words, bytes, sizeof words);
      words[0] ^= value;
      value = 0;
      for (int i = 0; i < 8; ++i) value ^= tables_[7 - i][words[i / 4] >> (8 * (i % 4)) & 255];
    }
    for (; count > 0; ++bytes, --count) value = (value >> 8) ^ tables_[0][(value ^ *bytes) & 255];
    return ~value;
  }
  uint32_t tables_[8][256];
};

// A file that cannot be used; the message is one line.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A file in memory, read when its pages are used.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) fail(path, std::strerror(errno));
    struct stat facts;
    const bool is_file = fstat(file, &facts) == 0 && S_ISREG(facts.st_mode);
    size_ = is_file ? static_cast<size_t>(facts.st_size) : 0;
    void* const memory =
        size_ > 0 ? mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    const int error = errno;
    close(file);
    if (!is_file) fail(path, "it is no regular file");
    if (size_ == 0) fail(path, "it is empty");
    if (memory == MAP_FAILED) fail(path, std::strerror(error));
    bytes_ = static_cast<const unsigned char*>(memory);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() { munmap(const_cast<unsigned char*>(bytes_), size_); }

  const unsigned char* bytes() const { return bytes_; }
  size_t size() const { return size_; }

 private:
  [[noreturn]] static void fail(const std::string& path, const std::string& reason) {
    throw Error(path + ": cannot be read (" + reason +
                "), expected a weight file: export.py writes it as NAME.vnet");
  }

  const unsigned char* bytes_ = nullptr;
  size_t size_ = 0;
};

// Where arrays are in the file of a network.
struct Layout {
  std::vector<Entry> entries;  // without checksums
  size_t header_bytes, file_bytes;

  explicit Layout(const std::vector<Layer>& layers) {
    for (size_t layer = 0; layer < layers.size(); ++layer)
      for (int parameter = 0; parameter < kParameters; ++parameter)
        if (const size_t floats =
                parameter_floats(layers[layer], static_cast<Parameter>(parameter)))
          entries.push_back(
              {0, floats, 0, static_cast<uint16_t>(layer), static_cast<uint16_t>(parameter)});
    file_bytes = header_bytes = aligned(sizeof(Header) + entries.size() * sizeof(Entry));
    for (Entry& entry : entries) {
      entry.offset = file_bytes;
      file_bytes = aligned(file_bytes + entry.floats * sizeof(float));
    }
  }

 private:
  static size_t aligned(size_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }
};

// A network with the grid and the parameters of a weight file.
class File {
 public:
  // Checks the whole file. Throws Error.
  File(const std::string& path, ThreadPool& pool) : path_(path), file_(path) {
    const Header header = read_header();
    for (const int32_t flag :
         {header.activation_before_sum, header.encoder_bias, header.decoder_bias, header.up_bias,
          header.head_unit, header.head_bias})
      if (flag != 0 && flag != 1) fail("found " + std::to_string(flag) + " for a yes or no");
    description_ = description_of(header);
    shape_ = {1, 1, header.grid[0], header.grid[1], header.grid[2]};
    if (const char* fault = fault_of(description_))
      fail(std::string("found a network that this program can't compute (") + fault +
           "), expected one of src/vnet.py");
    if (!takes_shape(description_, shape_))
      fail("found a grid of " + std::to_string(shape_.x) + " x " + std::to_string(shape_.y) +
           " x " + std::to_string(shape_.z) + ", expected multiples of " +
           std::to_string(kSideMultiple));
    const std::vector<Layer> layers = layers_of(description_);
    const Layout layout(layers);
    check_table(header, layout);
    check_arrays(layout, pool);
    parameters_.resize(layers.size());
    for (const Entry& entry : layout.entries)
      parameters_[entry.layer].pointers[entry.parameter] =
          reinterpret_cast<const float*>(file_.bytes() + entry.offset);
  }

  const NetworkDescription& description() const { return description_; }
  const std::vector<LayerParameters>& parameters() const { return parameters_; }
  const Shape& shape() const { return shape_; }  // of the volume

 private:
  [[noreturn]] void fail(const std::string& finding) const {
    throw Error(path_ + ": " + finding + ": export it again with export.py");
  }

  // Refuses what is not of this format and version, and what is cut, longer or damaged.
  Header read_header() const {
    Header header{};
    std::memcpy(&header, file_.bytes(), std::min(sizeof header, file_.size()));
    if (std::memcmp(header.magic, kMagic, std::min(sizeof kMagic, file_.size())) != 0)
      fail("found no weight file of a V-Net (its first bytes are others)");
    if (file_.size() >= offsetof(Header, header_bytes) && header.version != kVersion)
      fail("found format version " + std::to_string(header.version) + ", expected " +
           std::to_string(kVersion));
    if (file_.size() < sizeof header || header.file_bytes != file_.size())
      fail("found " + std::to_string(file_.size()) + " bytes, expected " +
           std::to_string(file_.size() < sizeof header ? sizeof header : header.file_bytes));
    if (header.header_bytes < sizeof header || header.header_bytes > file_.size())
      fail("found a header of " + std::to_string(header.header_bytes) + " bytes");
    std::vector<unsigned char> bytes(file_.bytes(), file_.bytes() + header.header_bytes);
    std::memset(bytes.data() + offsetof(Header, crc), 0, sizeof header.crc);
    if (Crc32::of(bytes.data(), bytes.size()) != header.crc) fail("found a damaged header");
    return header;
  }

  static NetworkDescription description_of(const Header& header) {
    NetworkDescription d;
    d.width = header.width;
    std::copy_n(header.encoder_depths, kLevels, d.encoder_depths.begin());
    std::copy_n(header.decoder_depths, kLevels - 1, d.decoder_depths.begin());
    d.activation = static_cast<Activation>(header.activation);
    d.norm = static_cast<Norm>(header.norm);
    d.activation_before_sum = header.activation_before_sum != 0;
    d.encoder_bias = header.encoder_bias != 0;
    d.decoder_bias = header.decoder_bias != 0;
    d.up_bias = header.up_bias != 0;
    d.head_unit = header.head_unit != 0;
    d.head_side = header.head_side;
    d.head_bias = header.head_bias != 0;
    d.foreground = header.foreground;
    d.epsilon = header.epsilon;
    return d;
  }

  void check_table(const Header& header, const Layout& layout) const {
    const auto entries_fit = [&] {
      for (size_t i = 0; i < layout.entries.size(); ++i) {
        const Entry &found = entry_of(i), &expected = layout.entries[i];
        if (found.offset != expected.offset || found.floats != expected.floats ||
            found.layer != expected.layer || found.parameter != expected.parameter)
          return false;
      }
      return true;
    };
    if (header.arrays != layout.entries.size() || header.header_bytes != layout.header_bytes ||
        header.file_bytes != layout.file_bytes || !entries_fit())
      fail("found arrays that are not those of its network");
  }

  // Compares the checksums of all arrays, in parallel.
  void check_arrays(const Layout& layout, ThreadPool& pool) const {
    std::atomic<bool> damaged{false};
    pool.for_each(static_cast<int>(layout.entries.size()), [&](int item, int) {
      const Entry& entry = layout.entries[item];
      if (Crc32::of(file_.bytes() + entry.offset, entry.floats * sizeof(float)) !=
          entry_of(item).crc)
        damaged = true;
    });
    if (damaged) fail("found damaged weights");
  }

  const Entry& entry_of(size_t index) const {
    return reinterpret_cast<const Entry*>(file_.bytes() + sizeof(Header))[index];
  }

  std::string path_;
  MappedFile file_;
  NetworkDescription description_;
  Shape shape_{};
  std::vector<LayerParameters> parameters_;
};

}  // namespace weight_file
}  // namespace fast_conv3d
