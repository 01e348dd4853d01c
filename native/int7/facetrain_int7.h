/*
 * The INT7 runtime of Facetrain as a C library: loads a model.int7.onnx, and computes its outputs for pictures.
 *
 *   ft_int7_model* model;
 *   ft_int7_context* context;
 *   ft_int7_info info;
 *   if (ft_int7_load_file("model.int7.onnx", NULL, &model) != FT_INT7_OK) puts(ft_int7_last_error());
 *   ft_int7_get_info(model, &info);
 *   ft_int7_create_context(model, 1, &context);
 *   float* numbers = malloc(info.output_size * sizeof *numbers);
 *   ft_int7_run(context, picture, numbers);
 *
 * A model has one output (a face's embedding) or several (a detector's scores and boxes). A run writes all of them into
 * one array, one after the other; ft_int7_get_output says where each is.
 *
 * The outputs are what the network computes: an embedding is not normalized. The cosine of two faces is the product of
 * their embeddings divided by both lengths.
 *
 * A file may end with operators that this library does not have, such as NonMaxSuppression, TopK or LSTM: its tail,
 * which ONNX Runtime computes. The outputs are then the tensors in front of the tail, under their names in the file.
 * The metadata "facetrain.tail" (ft_int7_get_metadata) says which operators follow: the caller has to compute them.
 *
 * A function that can fail returns a status; ft_int7_last_error() then says what was found and what is allowed. Nothing
 * is thrown. Files are not trusted: a damaged one is refused. Running allocates no memory (in a library that dlopen has
 * loaded, the C library itself allocates a thread's storage, 1 KB, at that thread's first call).
 *
 * Threads. A model may be used by several threads at once, a context by one at a time: a second run in it meanwhile is
 * refused. A context of more than one thread starts the others when it is made, and keeps them until it is freed. They
 * sleep between runs; during a run they wait actively for each other, so there should be as many free cores. Threads
 * do not survive fork(): in the child, such a context may be neither used nor freed. Models, and contexts of one
 * thread, may.
 *
 * Versions. FT_INT7_ABI_VERSION is the number behind the library's name (libfacetrain_int7.so.3). It changes when a
 * struct or a function changes, so a program never runs with a library of another version. Every version reads all
 * files that older ones read. A file of a newer format (ft_int7_info.version) is refused. A library from before files
 * with activations of 8 bits (search.budget) refuses these: "has scales along another axis than that of the outputs".
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

#define FT_INT7_ABI_VERSION 3
#define FT_INT7_MAX_RANK 7 /* dimensions of an output */

typedef enum ft_int7_status {
  FT_INT7_OK = 0,
  FT_INT7_INVALID_ARGUMENT = 1, /* a null pointer, or a number out of its range */
  FT_INT7_INVALID_MODEL = 2,    /* not a model.int7.onnx, damaged, larger than allowed, or not for that picture size */
  FT_INT7_FILE = 3,             /* the file cannot be read */
  FT_INT7_OUT_OF_MEMORY = 4,
  FT_INT7_INTERNAL = 5
} ft_int7_status;

typedef enum ft_int7_color_order { FT_INT7_RGB = 0, FT_INT7_BGR = 1, FT_INT7_UNKNOWN_ORDER = 2 } ft_int7_color_order;

/* How a model is loaded. Every field that is 0 has its default, so begin with `ft_int7_options options = {0};`. */
typedef struct ft_int7_options {
  /*
   * Size of the pictures, 1 to 16384. 0: the file's. Another size than the file's needs a network that has it: one of
   * convolutions, pools and the like, as detectors are. One with a fully connected layer, or with a fixed size inside,
   * is refused.
   */
  int32_t height, width;
  /*
   * Bytes that the model may take, while it is loaded (the file, if the library reads it, and the numbers of it) and
   * afterwards (those numbers, packed weights, and one context with one thread). 0: 2^31. A model that needs more is
   * refused when it is loaded, and the message says how much it needs. Not counted: names, and lists of sizes and
   * indices, which are short in networks as they are.
   */
  int64_t largest_memory;
  /*
   * To compute with another instruction set than the best of this processor, for comparisons: avx512vnni, avxvnni,
   * avx2, neondot, neon or portable; also avx2direct (avx2 without Winograd's convolution) and avx2int32 (and without
   * sums in int16). All compute the same numbers. Null: the best. One that the processor lacks is refused, with a list
   * of those that it has.
   */
  const char* instruction_set;
} ft_int7_options;

/* What a model reads and writes. */
typedef struct ft_int7_info {
  int32_t height, width, channels; /* of a picture: bytes [height][width][channels]; 1 channel: its gray */
  ft_int7_color_order color_order; /* of three channels, as the file says it */
  int32_t output_count;
  int64_t output_size; /* numbers of all outputs together */
  /* The bytes are mapped by the library. The file's own range, for information: its input is (byte - mean) / std. */
  float mean[4], std[4];
  int32_t version; /* of the file's format, from 1 on; 2: it has a tail */
  /* That the model uses: see ft_int7_options. Static; must not be freed. */
  const char* instruction_set;
} ft_int7_info;

/* One output: `size` float numbers from `offset` on, in row-major order (a map: [channels][height][width]). */
typedef struct ft_int7_output {
  const char* name; /* as the file has it. Belongs to the model, and is valid as long as that. */
  int32_t rank;
  int64_t dims[FT_INT7_MAX_RANK]; /* `rank` of them: for one picture, so without ONNX's batch */
  int64_t offset, size;
} ft_int7_output;

typedef struct ft_int7_model ft_int7_model;
typedef struct ft_int7_context ft_int7_context;

/* FT_INT7_ABI_VERSION of the library that is linked. */
FT_INT7_API int32_t ft_int7_abi_version(void);

/* Why the last call of this thread failed; an empty string if it did not. Valid until the thread's next call. */
FT_INT7_API const char* ft_int7_last_error(void);

/*
 * Loads a model. `options` may be null: all defaults. `data` is not needed afterwards. *model is null after a failure.
 */
FT_INT7_API ft_int7_status ft_int7_load_file(const char* path, const ft_int7_options* options, ft_int7_model** model);
FT_INT7_API ft_int7_status ft_int7_load_memory(const void* data, size_t size, const ft_int7_options* options,
                                               ft_int7_model** model);

FT_INT7_API ft_int7_status ft_int7_get_info(const ft_int7_model* model, ft_int7_info* info);
/* Of output 0 to output_count - 1, in the file's order. */
FT_INT7_API ft_int7_status ft_int7_get_output(const ft_int7_model* model, int32_t index, ft_int7_output* output);
/*
 * An entry of the file's metadata_props, or null if it has none of that key. Belongs to the model. Those of Facetrain:
 *   facetrain.format                           "int7"
 *   facetrain.version                          of that format: 2 for files with a tail, else 1 or absent
 *   facetrain.bits                             of activations that convolutions multiply: "7", or "7, 8"
 *   facetrain.limit                            the largest integer of a weight: "63"
 *   facetrain.rounding                         of all integers: "half to even"
 *   facetrain.channelOrder                     "rgb" or "bgr"
 *   facetrain.input.mean, .std                 of the file's input, "[127.5,127.5,127.5]": ft_int7_info has them
 *   facetrain.input.layout, .elementType       of the file's input if it is not NCHW of floats: "NHWC" or "CHW"
 *                                              (a picture without a batch), "uint8"
 *   facetrain.tail                             operators behind the outputs: "NonMaxSuppression 1, Gather 3"; absent:
 *                                              none, so the outputs are those of the file
 *   facetrain.outputs                          of a file with a tail: the names of ft_int7_get_output, a line each
 *   facetrain.source.sha256                    of the FP32 model's file
 *   facetrain.calibration.sha256               of the calibration pictures' pixels
 */
FT_INT7_API const char* ft_int7_get_metadata(const ft_int7_model* model, const char* key);

/* Bytes of a context with so many threads (1 to 256), without what the system keeps for these. */
FT_INT7_API ft_int7_status ft_int7_get_context_size(const ft_int7_model* model, int32_t threads, int64_t* bytes);

/*
 * Makes the memory for runs. `threads` (1 to 256) compute one picture together. The context keeps the model alive, so
 * the two may be freed in any order. *context is null after a failure.
 */
FT_INT7_API ft_int7_status ft_int7_create_context(const ft_int7_model* model, int32_t threads,
                                                  ft_int7_context** context);

/*
 * Computes the outputs of a picture. `picture` has height * width * channels bytes of ft_int7_info, all of which are
 * read: [height][width][channels], the rows one behind the other without a gap, three channels in the order of
 * color_order. `outputs` has room for output_size numbers, all of which are written. Neither needs an alignment beyond
 * that of its type. For a model of faces, the picture is an aligned face, as those that it was trained with.
 */
FT_INT7_API ft_int7_status ft_int7_run(ft_int7_context* context, const uint8_t* picture, float* outputs);

/* Null is allowed. */
FT_INT7_API void ft_int7_free_context(ft_int7_context* context);
FT_INT7_API void ft_int7_free_model(ft_int7_model* model);

#ifdef __cplusplus
}
#endif

#endif /* FACETRAIN_INT7_H */
