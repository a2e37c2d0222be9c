/* Reads series.bin; writes the scores of each series to scores.bin, after its label. LABELS=0 saves
   half of the time: the label is -1 then. */
#include "net.h"

#include <stdint.h>
#include <stdio.h>

#ifndef LABELS
#define LABELS 1
#endif

int main(void)
{
    static float series[NET_CHANNELS * NET_LENGTH], scores[NET_CLASSES];
    FILE *in = fopen("series.bin", "rb"), *out = fopen("scores.bin", "wb");
    if (!in || !out)
        return 1;
    while (fread(series, sizeof series, 1, in) == 1) {
        const int32_t label = LABELS ? net_predict(series) : -1;
        net_scores(series, scores);
        if (fwrite(&label, sizeof label, 1, out) != 1 || fwrite(scores, sizeof scores, 1, out) != 1)
            return 1;
    }
    return fclose(out) || ferror(in);
}
