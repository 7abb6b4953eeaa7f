/* CUDA's headers include it from the compiler's package. */
#define __device_builtin__
#define __builtin_align__(a) __attribute__((aligned(a)))
#define __align__(a) __attribute__((aligned(a)))
#define CUDARTAPI
#define __host__
#define __device__
#define __inline__ inline
#define __location__(a)
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
