/* The library of replaceable.c. */
__attribute__((noinline)) void fault_in_library(void *where)
{
    *(volatile int *)where = 42;
    __asm__("");
}
