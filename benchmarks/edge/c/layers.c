/* Reads series.bin; writes the input (padded) and the output of each layer to layers.bin. STEPS are
   the statements of net.c's run(), those of layers inside LAYER(). */
#include "net.c"

#include <stdio.h>

#define LAYER(call, in, inputs, out, outputs) \
    written += fwrite(in, sizeof *(in), inputs, to); \
    call; \
    written += fwrite(out, sizeof *(out), outputs, to)

int main(void)
{
    static float series[NET_CHANNELS * NET_LENGTH];
    sample_t *const x = arena.x;
    FILE *from = fopen("series.bin", "rb"), *to = fopen("layers.bin", "wb");
    size_t written = 0;
    if (!from || !to)
        return 1;
    while (fread(series, sizeof series, 1, from) == 1) {
        STEPS
    }
    printf("%lu\n", (unsigned long)written);
    return fclose(to) || ferror(from);
}
