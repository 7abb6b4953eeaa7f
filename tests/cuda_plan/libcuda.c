/* The functions of CUDA's driver whose results are read, by `ortkit providers` too: the GPU of libcudart.c. */
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "stub", length); return 0; }
int cuDeviceTotalMem_v2(unsigned long *size, int device) { *size = 16ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* CUdevice_attribute */
    case 75: *value = 8; break;      /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = 9; break;      /* COMPUTE_CAPABILITY_MINOR */
    case 97: *value = 101376; break; /* MAX_SHARED_MEMORY_PER_BLOCK_OPTIN */
    default: *value = 1;
    }
    return 0;
}
