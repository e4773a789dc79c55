/* The least that a core_pattern can pipe to: reads it and forgets it. */
#include <unistd.h>

int main(void)
{
    static char buffer[1 << 16];

    while (read(STDIN_FILENO, buffer, sizeof buffer) > 0)
        ;
    return 0;
}
