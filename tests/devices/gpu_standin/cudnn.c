// cuDNN's part of the stand-in: a descriptor holds the size of its tensor in bytes, nothing else.
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_BYTES = 4096, DESCRIPTOR_BYTES = 64 };

static int create(void** handle) {
  *handle = calloc(1, DESCRIPTOR_BYTES);
  return 0;
}

static int workspace(size_t* bytes) {
  *bytes = WORKSPACE_BYTES;
  return 0;
}

// CUDNN_DATA_FLOAT, DOUBLE, HALF, INT8, INT32 are 0 to 4.
static size_t element_bytes(int type) { return type >= 0 && type < 5 ? "\4\10\2\1\4"[type] : 1; }

static int set(size_t* descriptor, int type, int count, const int* sides) {
  *descriptor = element_bytes(type);
  for (int axis = 0; axis < count; axis++) *descriptor *= sides[axis];
  return 0;
}

const char* cudnnGetErrorString(int error) { return "error of the stand-in"; }
int cudnnCreate(void** handle) { return create(handle); }
int cudnnCreateTensorDescriptor(void** handle) { return create(handle); }
int cudnnCreateFilterDescriptor(void** handle) { return create(handle); }
int cudnnCreateConvolutionDescriptor(void** handle) { return create(handle); }
int cudnnCreateActivationDescriptor(void** handle) { return create(handle); }
int cudnnCreateReduceTensorDescriptor(void** handle) { return create(handle); }
int cudnnCreateOpTensorDescriptor(void** handle) { return create(handle); }

int cudnnSetTensor4dDescriptor(size_t* tensor, int format, int type, int n, int c, int h, int w) {
  return set(tensor, type, 4, (int[]){n, c, h, w});
}
int cudnnSetTensorNdDescriptor(size_t* tensor, int type, int count, int* sides, int* strides) {
  return set(tensor, type, count, sides);
}
int cudnnSetTensorNdDescriptorEx(size_t* tensor, int format, int type, int count, int* sides) {
  return set(tensor, type, count, sides);
}
int cudnnSetFilter4dDescriptor(size_t* filter, int type, int format, int k, int c, int h, int w) {
  return set(filter, type, 4, (int[]){k, c, h, w});
}
int cudnnSetFilterNdDescriptor(size_t* filter, int type, int format, int count, int* sides) {
  return set(filter, type, count, sides);
}
int cudnnGetTensorSizeInBytes(size_t* tensor, size_t* bytes) {
  *bytes = *tensor;
  return 0;
}
int cudnnGetFilterSizeInBytes(size_t* filter, size_t* bytes) {
  *bytes = *filter;
  return 0;
}

// What an algorithm's entry in the list of candidates holds.
struct candidate {
  int algorithm, status;
  float time;
  size_t memory;
  int deterministic, math_type, reserved[3];
};

static int choose(int* found, struct candidate* candidates) {
  *found = 1;
  memset(candidates, 0, sizeof *candidates);
  candidates->algorithm = 1;
  return 0;
}

#define CONVOLUTION(NAME)                                                                        \
  int cudnnGetConvolution##NAME##WorkspaceSize(void* handle, void* a, void* b, void* c, void* d, \
                                               int algorithm, size_t* bytes) {                   \
    return workspace(bytes);                                                                     \
  }                                                                                              \
  int cudnnGetConvolution##NAME##Algorithm_v7(void* handle, void* a, void* b, void* c, void* d,  \
                                              int asked, int* found, struct candidate* list) {   \
    return choose(found, list);                                                                  \
  }                                                                                              \
  int cudnnFindConvolution##NAME##Algorithm(void* handle, void* a, void* b, void* c, void* d,    \
                                            int asked, int* found, struct candidate* list) {     \
    return choose(found, list);                                                                  \
  }
CONVOLUTION(Forward)
CONVOLUTION(BackwardData)
CONVOLUTION(BackwardFilter)

int cudnnGetReductionIndicesSize(void* handle, void* reduce, void* a, void* c, size_t* bytes) {
  return workspace(bytes);
}
int cudnnGetReductionWorkspaceSize(void* handle, void* reduce, void* a, void* c, size_t* bytes) {
  return workspace(bytes);
}
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void* handle, int mode, int operation,
                                                             void* x, void* z, void* y, void* scale,
                                                             void* activation, size_t* bytes) {
  return workspace(bytes);
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void* handle, int mode, int operation,
                                                      void* x, void* y, void* dy, void* dz,
                                                      void* dx, void* scale, void* activation,
                                                      size_t* bytes) {
  return workspace(bytes);
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void* handle, int mode, int operation,
                                                         void* activation, void* x, size_t* bytes) {
  return workspace(bytes);
}
