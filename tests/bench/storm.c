/* storm COUNT AT_ONCE: has COUNT children crash, AT_ONCE of them at a time, and writes how many
 * seconds it was from the first fork to the last wait.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    int left, room, status;
    double start;

    if (argc != 3 || (left = atoi(argv[1])) < 1 || (room = atoi(argv[2])) < 1)
        return 2;
    if (setrlimit(RLIMIT_CORE, &unlimited) < 0) {
        perror("setrlimit");
        return 1;
    }
    start = now();
    for (int running = 0; left > 0 || running > 0;) {
        if (left > 0 && running < room) {
            pid_t child = fork();

            if (child == 0) {
                kill(getpid(), SIGSEGV);
                _exit(1);
            }
            if (child < 0) {
                perror("fork");
                return 1;
            }
            left--;
            running++;
            continue;
        }
        if (wait(&status) < 0 || !WIFSIGNALED(status)) {
            fprintf(stderr, "a child did not crash: status %#x\n", status);
            return 1;
        }
        running--;
    }
    printf("%.6f\n", now() - start);
    return 0;
}
