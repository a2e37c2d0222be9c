/* Start on a Cortex-M: the vector table, and the floating-point unit switched on. */
#include <stdint.h>

extern void _start(void);
extern char __stack[];

void reset(void);
void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR */
    __asm volatile("dsb\n isb");
    _start(); /* newlib's: files and output by semihosting */
}

__attribute__((section(".vectors"), used)) static const struct {
    void *stack;
    void (*reset)(void);
} vectors = {__stack, reset};
