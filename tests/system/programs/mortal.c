/* Dies as it is told to, as who it is told to be.
 * usage: mortal as UID LIMIT PROGRAM [ARGUMENT...]   sets uid and RLIMIT_CORE (-1: none), executes
 *        mortal die HOW KIB COMM                     COMM in hex; KIB of memory that does not compress
 *        mortal wait                                 for a signal */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

static volatile int *nowhere;
static volatile int zero;
static void *idle(void *p) { pause(); return p; }
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Winfinite-recursion"
__attribute__((noinline)) static int deeper(volatile char *p)
{
    volatile char here[4096];
    here[0] = p[0];
    return deeper(here) + here[0];
}
__attribute__((noinline)) static void write_null(void) { *nowhere = 42; }
__attribute__((noinline)) static void divide(void) { zero = 1 / zero; }
__attribute__((noinline)) static void give_up(void) { abort(); }
__attribute__((noinline)) static void trap(void) { __builtin_trap(); }

static void die(const char *how, unsigned long kib)
{
    uint64_t state = 88172645463325252UL ^ (uint64_t)getpid() << 20, *p = malloc(kib << 10);
    for (unsigned long i = 0; p && i < kib << 7; i++) {
        state ^= state << 13; state ^= state >> 7; state ^= state << 17;
        p[i] = state;
    }
    if (!strcmp(how, "threads"))
        for (int i = 0; i < 8; i++) { pthread_t t; pthread_create(&t, 0, idle, 0); }
    if (!strcmp(how, "abort")) give_up();
    if (!strcmp(how, "divide")) divide();
    if (!strcmp(how, "trap")) trap();
    if (!strcmp(how, "stack")) deeper("");
    write_null();
}

int main(int argc, char **argv)
{
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL); /* a background job ignores some */
    if (argc > 4 && !strcmp(argv[1], "as")) {
        uid_t uid = atoi(argv[2]);
        struct rlimit limit;
        getrlimit(RLIMIT_CORE, &limit);
        limit.rlim_cur = argv[3][0] == '-' ? limit.rlim_max : strtoul(argv[3], 0, 10);
        if (setrlimit(RLIMIT_CORE, &limit) || (uid && (setgroups(0, 0) || setgid(uid) || setuid(uid)))) {
            perror("mortal");
            return 3;
        }
        execvp(argv[4], argv + 4);
        perror(argv[4]);
        return 3;
    }
    if (argc > 1 && !strcmp(argv[1], "wait")) { puts("ready"); fflush(stdout); pause(); }
    if (argc < 5) return 2;
    char comm[16] = { 0 };
    for (unsigned at = 0, byte; at < 15 && sscanf(argv[4] + 2 * at, "%2x", &byte) == 1; at++) comm[at] = byte;
    prctl(PR_SET_NAME, comm);
    die(argv[2], strtoul(argv[3], 0, 10));
}
