/* Prints the instructions of each step of a network for one series, in QEMU with -icount shift=0:
   an instruction then takes a nanosecond, and the board's timer has 25 MHz. STEPS are the calls in
   net.c's run(), each inside COUNT(). The series is zeros: the program takes the same way for all. */
#include "net.c"

#include <stdio.h>

#define TIMER ((volatile uint32_t *)0x40000000) /* control, value, reload */
#define COUNT(step) begin = TIMER[1]; step; printf("%lu\n", (unsigned long)(begin - TIMER[1]) * 40)

int main(void)
{
    static const float series[NET_CHANNELS * NET_LENGTH];
    sample_t *const x = arena.x;
    uint32_t begin;
    TIMER[2] = TIMER[1] = 0xFFFFFFFF;
    TIMER[0] = 1;
    COUNT(net_predict(series));
    STEPS
    return 0;
}
