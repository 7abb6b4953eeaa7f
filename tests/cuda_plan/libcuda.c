/* The functions of CUDA's driver that `ortkit providers` reads: the GPU of libcudart.c. */
#include <string.h>

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "stub", length); return 0; }
int cuDeviceTotalMem_v2(unsigned long *size, int device) { *size = 16ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 9 : 1; /* the compute capability */
    return 0;
}
