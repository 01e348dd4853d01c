/*
 * The INT7 runtime of Facetrain as a C library: loads a model.int7.onnx and computes embeddings of pictures.
 *
 *   ft_int7_model* model;
 *   ft_int7_context* context;
 *   if (ft_int7_load_file("model.int7.onnx", &model) != FT_INT7_OK) puts(ft_int7_last_error());
 *   ft_int7_create_context(model, 1, &context);
 *   ft_int7_run(context, picture, embedding);
 *
 * A function that can fail returns a status; ft_int7_last_error() then says what was found and what is allowed. Nothing
 * is thrown. A model may be used by several threads at once, a context by one at a time. Running allocates no memory
 * with one thread. Files are not trusted: a damaged one is refused.
 *
 * Structs only grow at their end, and only with a new FT_INT7_ABI_VERSION.
 */
#ifndef FACETRAIN_INT7_H
#define FACETRAIN_INT7_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FT_INT7_API __attribute__((visibility("default")))
#else
#define FT_INT7_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define FT_INT7_ABI_VERSION 1

typedef enum ft_int7_status {
  FT_INT7_OK = 0,
  FT_INT7_INVALID_ARGUMENT = 1, /* a null pointer, or a number out of its range */
  FT_INT7_INVALID_MODEL = 2,    /* not a model.int7.onnx, damaged, or with a layer that this library does not know */
  FT_INT7_FILE = 3,             /* the file cannot be read */
  FT_INT7_OUT_OF_MEMORY = 4,
  FT_INT7_INTERNAL = 5
} ft_int7_status;

typedef enum ft_int7_color_order { FT_INT7_RGB = 0, FT_INT7_BGR = 1, FT_INT7_UNKNOWN_ORDER = 2 } ft_int7_color_order;

/* What a model reads and writes. */
typedef struct ft_int7_info {
  int32_t height, width, channels; /* of a picture: bytes [height][width][channels] */
  ft_int7_color_order color_order; /* of its channels, as the file says it */
  int64_t output_size;             /* numbers of an embedding, which is not normalized */
  /* The bytes are mapped by the library. The file's own range, for information: its input is (byte - mean) / std. */
  float mean[4], std[4];
  /* Of this machine that the model uses: avx512vnni, avx2, neondot, neon or portable. Static; must not be freed. */
  const char* instruction_set;
} ft_int7_info;

typedef struct ft_int7_model ft_int7_model;
typedef struct ft_int7_context ft_int7_context;

/* FT_INT7_ABI_VERSION of the library that is linked. */
FT_INT7_API int32_t ft_int7_abi_version(void);

/* Why the last call of this thread failed; an empty string if none has. Valid until the thread's next call. */
FT_INT7_API const char* ft_int7_last_error(void);

/* Loads a model. `data` is not needed afterwards. *model is null after a failure. */
FT_INT7_API ft_int7_status ft_int7_load_file(const char* path, ft_int7_model** model);
FT_INT7_API ft_int7_status ft_int7_load_memory(const void* data, size_t size, ft_int7_model** model);
FT_INT7_API ft_int7_status ft_int7_get_info(const ft_int7_model* model, ft_int7_info* info);

/*
 * Makes the memory for runs. `threads` (1 to 256) compute one picture together. The context keeps the model alive, so
 * the two may be freed in any order. *context is null after a failure.
 */
FT_INT7_API ft_int7_status ft_int7_create_context(const ft_int7_model* model, int32_t threads,
                                                  ft_int7_context** context);

/* Computes the embedding [output_size] of a picture [height][width][channels] of bytes. */
FT_INT7_API ft_int7_status ft_int7_run(ft_int7_context* context, const uint8_t* picture, float* embedding);

/* Null is allowed. */
FT_INT7_API void ft_int7_free_context(ft_int7_context* context);
FT_INT7_API void ft_int7_free_model(ft_int7_model* model);

#ifdef __cplusplus
}
#endif

#endif /* FACETRAIN_INT7_H */
