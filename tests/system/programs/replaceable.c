/* Waits for a line, then crashes in its library: the test replaces both files meanwhile. */
#include <stdio.h>

void fault_in_library(void *where);

__attribute__((noinline)) void call_library(void)
{
    fault_in_library(0);
    __asm__("");
}

int main(void)
{
    puts("ready");
    fflush(stdout);
    getchar();
    call_library();
    return 0;
}
