/* What happened first, where a handler hides it; pointers that are NULL in other ways. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OUTLINE __attribute__((noinline, noclone))

volatile int sink;
int *volatile null;
static pthread_t first;

OUTLINE void before_null(void) { sink = null[-1]; }

struct large { char block[0x20000]; int last; };
OUTLINE void far_member(void) { sink = ((struct large *)null)->last; }

#ifdef __x86_64__
OUTLINE void exchanges(void) {
    char *place = (char *)malloc(64) + 4;
    __asm__ volatile("lock cmpxchg16b (%0)" ::"r"(place) : "rax", "rdx", "memory", "cc");
    sink = 1;
}
#endif

static void crashes(int number) { sink = *null; }
OUTLINE void abort_crashes(void) {
    signal(SIGABRT, crashes);
    abort();
}

static void sends_again(int number, siginfo_t *info, void *context) {
    syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), number, info);
}
OUTLINE void sent_again(void) {
    struct sigaction action = {.sa_sigaction = sends_again};
    action.sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER;
    sigaction(SIGSEGV, &action, NULL);
    sink = *null;
    sink = 1;
}

static void gives_up(int number) { abort(); }
OUTLINE void hangs(void) { for (;;) sink++; }
OUTLINE void watchdog(void) {
    signal(SIGALRM, gives_up);
    ualarm(100000, 0);
    hangs();
}

static void raises(int number) {
    signal(number, SIG_DFL);
    raise(number);
}
OUTLINE void raised_again(void) {
    signal(SIGSEGV, raises);
    sink = *null;
    sink = 1;
}
OUTLINE void waits(void) {
    for (;;) usleep(1000000);
}
OUTLINE void told_to_die(void) {
    signal(SIGSEGV, raises);
    if (fork() == 0) {
        usleep(200000);
        kill(getppid(), SIGSEGV);
        _exit(0);
    }
    waits();
}

static void passes_on(int number) {
    signal(number, SIG_DFL);
    if (!pthread_equal(pthread_self(), first)) {
        pthread_kill(first, number);
        for (;;) pause();
    }
}
OUTLINE void *loses(void *unused) {
    sink = *null;
    return unused;
}
OUTLINE void passed_on(void) {
    pthread_t thread;
    first = pthread_self();
    signal(SIGSEGV, passes_on);
    pthread_create(&thread, NULL, loses, NULL);
    pthread_join(thread, NULL);
}

/* On the alternate stack the frames of two handlers lie at one address. */
static sigjmp_buf before;
static void goes_back(int number, siginfo_t *info, void *context) { siglongjmp(before, 1); }
static void notes(int number, siginfo_t *info, void *context) { sink = info->si_pid; }
static void handle_aside(int number, void *handler, int flags) {
    static char memory[1 << 16];
    stack_t aside = {.ss_sp = memory, .ss_size = sizeof(memory)};
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags | SA_ONSTACK};
    sigaltstack(&aside, NULL);
    sigaction(number, &action, NULL);
}
OUTLINE void alarm_after_fault(void) {
    handle_aside(SIGSEGV, goes_back, SA_SIGINFO);
    if (!sigsetjmp(before, 1)) sink = *null;
    handle_aside(SIGALRM, gives_up, 0);
    raise(SIGALRM);
    sink = 1;
}
OUTLINE void abort_after_quit(void) {
    handle_aside(SIGQUIT, notes, SA_SIGINFO);
    raise(SIGQUIT);
    handle_aside(SIGABRT, crashes, 0);
    abort();
}

int main(int count, char **words) {
    const char *word = words[1];
    if (!strcmp(word, "before_null")) before_null();
    if (!strcmp(word, "far_member")) far_member();
#ifdef __x86_64__
    if (!strcmp(word, "exchanges")) exchanges();
#endif
    if (!strcmp(word, "abort_crashes")) abort_crashes();
    if (!strcmp(word, "sent_again")) sent_again();
    if (!strcmp(word, "raised_again")) raised_again();
    if (!strcmp(word, "watchdog")) watchdog();
    if (!strcmp(word, "told_to_die")) told_to_die();
    if (!strcmp(word, "passed_on")) passed_on();
    if (!strcmp(word, "alarm_after_fault")) alarm_after_fault();
    if (!strcmp(word, "abort_after_quit")) abort_after_quit();
    sink = 2;
    return 0;
}
