/* The functions of CUDA's runtime whose results onnxruntime reads: one GPU of compute capability 8.9 whose memory is the
   host's. `stubs.py` adds the others, which do nothing: no kernel runs. */
#include <stdlib.h>
#include <string.h>
#include "driver_types.h"

#define MEMORY ((size_t)16 << 30)
#define ALIGNMENT 256

static long handle;

static int create(void **created) { *created = &handle; return 0; }

void *__cudaRegisterFatBinary(void *code) { return &handle; }
const char *cudaGetErrorString(int error) { return "stub"; }
const char *cudaGetErrorName(int error) { return "stub"; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }

int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMultiProcessorCount: *value = 64; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 9; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 102400; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 101376; break;
    default: *value = 1;
    }
    return 0;
}

int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "stub");
    found->totalGlobalMem = MEMORY;
    found->major = 8, found->minor = 9;
    found->multiProcessorCount = 64;
    found->warpSize = 32;
    found->maxThreadsPerBlock = 1024, found->maxThreadsPerMultiProcessor = 1536;
    found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
    found->maxGridSize[0] = 2147483647, found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->sharedMemPerBlock = 49152, found->sharedMemPerBlockOptin = 101376;
    found->sharedMemPerMultiprocessor = 102400;
    found->l2CacheSize = 32 << 20;
    return 0;
}

/* Zeroed, so that a run that computes nothing gives the same each time. */
int cudaMalloc(void **memory, size_t size) {
    size_t whole = (size + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    *memory = aligned_alloc(ALIGNMENT, whole);
    if (*memory == NULL) return cudaErrorMemoryAllocation;
    memset(*memory, 0, whole);
    return 0;
}
int cudaMallocHost(void **memory, size_t size) { return cudaMalloc(memory, size); }
int cudaHostAlloc(void **memory, size_t size, unsigned flags) { return cudaMalloc(memory, size); }
int cudaFree(void *memory) { free(memory); return 0; }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = MEMORY; return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) { memmove(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) { memmove(to, from, size); return 0; }
int cudaMemset(void *memory, int value, size_t size) { memset(memory, value, size); return 0; }
int cudaMemsetAsync(void *memory, int value, size_t size, void *stream) { memset(memory, value, size); return 0; }
int cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *memory) {
    memset(found, 0, sizeof *found);
    found->type = cudaMemoryTypeDevice;
    return 0;
}

int cudaStreamCreate(void **stream) { return create(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return create(stream); }
int cudaEventCreate(void **event) { return create(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return create(event); }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return 0; }
int cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) { memset(found, 0, sizeof *found); return 0; }
