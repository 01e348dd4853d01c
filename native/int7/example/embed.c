/* Prints the embedding of a raw picture, height * width * channels bytes: embed MODEL.int7.onnx PIXELS */
#include <stdio.h>
#include <stdlib.h>

#include "facetrain_int7.h"

static int fail(void) { return fprintf(stderr, "embed: %s\n", ft_int7_last_error()), 1; }

int main(int argc, char** argv) {
  ft_int7_model* model;
  ft_int7_context* context;
  ft_int7_info info;
  if (argc != 3) return fprintf(stderr, "usage: embed MODEL.int7.onnx PIXELS\n"), 2;
  if (ft_int7_load_file(argv[1], NULL, &model) != FT_INT7_OK) return fail();
  if (ft_int7_get_info(model, &info) != FT_INT7_OK) return fail();
  if (ft_int7_create_context(model, 1, &context) != FT_INT7_OK) return fail();
  size_t size = (size_t)info.height * info.width * info.channels;
  uint8_t* picture = malloc(size);
  float* outputs = malloc(info.output_size * sizeof *outputs);
  FILE* file = fopen(argv[2], "rb");
  if (!file) return perror(argv[2]), 1;
  if (!picture || !outputs || fread(picture, 1, size, file) != size || getc(file) != EOF)
    return fprintf(stderr, "embed: %s: not %zu bytes, but a raw picture is\n", argv[2], size), 1;
  fclose(file);
  if (ft_int7_run(context, picture, outputs) != FT_INT7_OK) return fail();
  for (int64_t i = 0; i < info.output_size; ++i) printf("%.9g\n", outputs[i]);
  free(picture), free(outputs);
  ft_int7_free_context(context), ft_int7_free_model(model);
  return 0;
}
