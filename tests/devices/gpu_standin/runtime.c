// The CUDA runtime's part of the stand-in: device memory is host memory, and all is done at once.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, DEVICE_TO_HOST = 2 };

static long knob(const char* name, long otherwise) {
  const char* value = getenv(name);
  return value ? atol(value) : otherwise;
}

static size_t memory_bytes(void) { return (size_t)knob("STANDIN_MEMORY_MB", 8192) << 20; }

int cudaGetDeviceCount(int* count) {
  *count = (int)knob("STANDIN_GPUS", 2);
  return (int)knob("STANDIN_ERROR", SUCCESS);
}

// The structure as CUDA 11 lays it out; what is not set stays 0.
int cudaGetDeviceProperties(char* properties, int device) {
  enum { BYTES = 712, TOTAL_MEMORY = 288, SHARED_MEMORY = 296, REGISTERS = 304, WARP = 308 };
  enum { PITCH = 312, BLOCK_THREADS = 320, BLOCK = 324, GRID = 336, CLOCK = 348, CONSTANT = 352 };
  enum { MAJOR = 360, MINOR = 364, PROCESSORS = 388 };
  const int block[3] = {1024, 1024, 64}, grid[3] = {2147483647, 65535, 65535};
  memset(properties, 0, BYTES);
  strcpy(properties, "stand-in");
  *(size_t*)(properties + TOTAL_MEMORY) = memory_bytes();
  *(size_t*)(properties + SHARED_MEMORY) = 49152;
  *(int*)(properties + REGISTERS) = 65536;
  *(int*)(properties + WARP) = 32;
  *(size_t*)(properties + PITCH) = 2147483647;
  *(int*)(properties + BLOCK_THREADS) = 1024;
  memcpy(properties + BLOCK, block, sizeof block);
  memcpy(properties + GRID, grid, sizeof grid);
  *(int*)(properties + CLOCK) = 1400000;
  *(size_t*)(properties + CONSTANT) = 65536;
  *(int*)(properties + MAJOR) = 8;
  *(int*)(properties + MINOR) = 0;
  *(int*)(properties + PROCESSORS) = 108;
  return SUCCESS;
}

static size_t allocated;

int cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = memory_bytes();
  *free_bytes = *total > allocated ? *total - allocated : 0;
  return SUCCESS;
}

int cudaMalloc(void** memory, size_t bytes) {
  if (allocated + bytes > memory_bytes()) return OUT_OF_MEMORY;
  allocated += bytes;
  *memory = calloc(1, bytes ? bytes : 1);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}

int cudaFree(void* memory) {
  free(memory);
  return SUCCESS;
}

int cudaHostAlloc(void** memory, size_t bytes, unsigned flags) {
  *memory = calloc(1, bytes ? bytes : 1);
  return SUCCESS;
}

int cudaFreeHost(void* memory) {
  free(memory);
  return SUCCESS;
}

// What goes to the host may be memory that no kernel has computed. A byte is the condition of a
// branch: both branches are taken in turn, by all ranks alike. A word that is NaN or infinite as
// float32 becomes 0, lest weights are refused for what was in their memory before.
int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  enum { EXPONENT = 0x7f800000 };
  static unsigned conditions;
  memmove(to, from, bytes);
  if (kind != DEVICE_TO_HOST) return SUCCESS;
  if (bytes == 1) *(uint8_t*)to = ++conditions & 1;
  for (size_t i = 0; i < bytes / 4; i++)
    if ((((uint32_t*)to)[i] & EXPONENT) == EXPONENT) ((uint32_t*)to)[i] = 0;
  return SUCCESS;
}

int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  return cudaMemcpy(to, from, bytes, kind);
}

int cudaMemset(void* memory, int value, size_t bytes) {
  memset(memory, value, bytes);
  return SUCCESS;
}

int cudaMemsetAsync(void* memory, int value, size_t bytes, void* stream) {
  return cudaMemset(memory, value, bytes);
}

int cudaStreamCreate(void** handle) {
  *handle = malloc(8);
  return SUCCESS;
}

int cudaStreamCreateWithFlags(void** handle, unsigned flags) { return cudaStreamCreate(handle); }

int cudaStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
  return cudaStreamCreate(handle);
}

int cudaEventCreate(void** handle) { return cudaStreamCreate(handle); }

int cudaEventCreateWithFlags(void** handle, unsigned flags) { return cudaStreamCreate(handle); }

int cudaEventElapsedTime(float* milliseconds, void* begin, void* end) {
  *milliseconds = 0.1f;
  return SUCCESS;
}

const char* cudaGetErrorString(int error) {
  switch (error) {
    case OUT_OF_MEMORY:
      return "out of memory";
    case 35:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case 100:
      return "no CUDA-capable device is detected";
  }
  return "error of the stand-in";
}

const char* cudaGetErrorName(int error) { return cudaGetErrorString(error); }
