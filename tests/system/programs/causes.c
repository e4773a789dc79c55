/* One known cause of death for each word that it takes: what the analysis is to find out. */
#define _GNU_SOURCE
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CASE __attribute__((noinline, noclone))
#define PAGE 4096

struct record {
    char name[24];
    int count;
    struct record *next;
};

static volatile int zero;
static struct record *volatile nothing;
static void *volatile sink;

CASE static void null_write(void) { nothing->count = 1; }
CASE static int null_read(void) { return nothing->next == 0; }
CASE static void null_call(void) { ((void (*)(void))(uintptr_t)zero)(); sink = 0; }
CASE static int wild_read(void) { return *(volatile int *)(uintptr_t)(0x123456789000 + zero); }
CASE static int noncanonical(void) { return *(volatile int *)(uintptr_t)(0xdead00000000beef + zero); }
CASE static void readonly_write(void) { *(volatile char *)"constant" = 'C'; }
CASE static void const_write(void) {
    static const char table[] = "also constant";
    *(volatile char *)table = 'A';
}
CASE static void data_execute(void) {
    static unsigned char code[16] = {0xc3};
    ((void (*)(void))(uintptr_t)(code + zero))();
    sink = 0;
}
CASE static int divide(void) { return 10 / zero; }
CASE static int overflow_divide(void) { volatile int most = (int)0x80000000; return most / (zero - 1); }
CASE static void illegal(void) { __builtin_trap(); }
CASE static void breakpoint(void) { __asm__ volatile("int3"); }
CASE static void aborts(void) { abort(); }
CASE static void asserts(void) { assert(zero == 1); }
CASE static void double_free(void) {
    char *a = malloc(2000), *guard = malloc(16);
    sink = guard;
    free(a);
    sink = a;
    free(sink);
}
CASE static void tcache_double_free(void) {
    char *a = malloc(24);
    free(a);
    sink = a;
    free(sink);
}
CASE static void invalid_free(void) {
    static char buffer[64];
    sink = buffer + 8;
    free(sink);
}
CASE static void heap_overrun(void) {
    char *a = malloc(2000), *b = malloc(2000);
    volatile size_t size = 2064;
    sink = a;
    memset(sink, 'A', size);
    sink = b;
    free(sink);
}
CASE static void smash(void) {
    char small[8];
    volatile size_t size = 64;
    sink = small;
    memset(sink, 'A', size);
}
CASE static void fortified(void) {
    char small[8];
    volatile size_t size = 64;
    sink = small;
    __memset_chk(sink, 'A', size, sizeof small);
}
CASE static int recurse(volatile int depth) {
    volatile char frame[512];
    frame[0] = (char)depth;
    return recurse(depth + 1) + frame[0];
}
CASE static int ping(volatile int depth);
CASE static int pong(volatile int depth) { volatile char frame[300]; frame[0] = 1; return ping(depth + 1) + frame[0]; }
CASE static int ping(volatile int depth) { volatile char frame[100]; frame[0] = 1; return pong(depth + 1) + frame[0]; }
static void *recurse_in_thread(void *p) { sink = p; ping(1); return 0; }
CASE static void thread_overflow(void) {
    pthread_t thread;
    pthread_create(&thread, 0, recurse_in_thread, 0);
    pthread_join(thread, 0);
}
CASE static void freed_use(void) {
    struct record *a = malloc(sizeof *a), *b = malloc(sizeof *b);
    memset(a, 0, sizeof *a);
    a->next = b;
    b->next = a;
    sink = a;
    free(a);
    /* the allocator's own link now stands where the name was */
    struct record **first = sink;
    (*first)->count = 3;
}
CASE static void poisoned(void) {
    struct record *a = malloc(sizeof *a);
    memset(a, 0x5a, sizeof *a);
    sink = a;
    a->next->count = 1;
}
CASE static void text_pointer(void) {
    struct record *a = malloc(sizeof *a);
    memcpy(a, "a name that is much too long for it..", 37);
    memcpy(&a->next, "/etc/con", 8);
    a->next->count = 1;
}
CASE static void bus_past_end(void) {
    char name[] = "/tmp/causesXXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    if (ftruncate(fd, 2 * PAGE)) return;
    volatile char *map = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0)) return;
    map[PAGE] = 1;
}
CASE static void protected_write(void) {
    volatile char *map = mmap(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    map[16] = 1;
}
CASE static void guard_read(void) {
    volatile char *map = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sink = (void *)(uintptr_t)map[16];
}
CASE static void unaligned(void) {
    static char buffer[64] __attribute__((aligned(16)));
    __asm__ volatile("movaps %%xmm0, 1(%0)" : : "r"(buffer) : "memory");
}
CASE static void filtered(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdir, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    syscall(SYS_mkdir, "/nonexistent/x", 0700);
}
CASE static void killed_by_other(void) {
    pid_t parent = getpid();
    if (!fork()) {
        kill(parent, SIGSEGV);
        _exit(0);
    }
    for (;;) pause();
}
CASE static void raises(void) { raise(SIGQUIT); }
CASE static int library_fault(void) { return (int)strlen((const char *)(uintptr_t)(8 + zero)); }
static int compare(const void *a, const void *b) { return *(const int *)a - nothing->count + *(const int *)b; }
CASE static void callback(void) { int v[2] = {2, 1}; qsort(v, 2, sizeof *v, compare); }
static void handler(int number) { sink = &number; nothing->count = number; }
CASE static void in_handler(void) { signal(SIGUSR1, handler); raise(SIGUSR1); }
static void aborting(int number) { (void)number; abort(); }
static void raising(int number) { signal(number, SIG_DFL); raise(number); }
static void failing_itself(int number) { (void)number; *(volatile int *)(uintptr_t)(0x5000 + zero) = 1; }
static void on_another_stack(void (*run)(int), int flags)
{
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    struct sigaction action = {.sa_handler = run, .sa_flags = SA_ONSTACK | flags};
    sigaltstack(&stack, 0);
    sigaction(SIGSEGV, &action, 0);
}
CASE static void caught_abort(void) { signal(SIGSEGV, aborting); nothing->count = 1; sink = 0; }
CASE static void caught_raise(void) { signal(SIGSEGV, raising); nothing->count = 1; sink = 0; }
CASE static void caught_aside(void) { on_another_stack(aborting, SA_SIGINFO); nothing->count = 1; sink = 0; }
CASE static void raised_aside(void) { on_another_stack(raising, SA_SIGINFO); nothing->count = 1; sink = 0; }
CASE static void caught_badly(void)
{
    on_another_stack(failing_itself, SA_SIGINFO | SA_NODEFER | SA_RESETHAND);
    nothing->count = 1;
    sink = 0;
}
CASE static void caught_overflow(void) { on_another_stack(aborting, SA_SIGINFO); recurse(1); }
CASE static int asks_clock(void) { return clock_gettime(CLOCK_REALTIME, (void *)(uintptr_t)(16 + zero)) + sink; }
CASE static void copies_null(void) { memset((void *)(uintptr_t)zero, 1, (size_t)(100 + zero)); sink = 0; }
CASE static void swaps(void) { __sync_val_compare_and_swap(&nothing->count, 1, 2); sink = 0; }
CASE static void large_frame(void) { volatile char room[64 << 20]; room[zero] = 1; sink = (void *)room; }
CASE static void text_call(void) { ((void (*)(void))(0x4141414142424242 + zero))(); sink = 0; }
CASE static void raises_abort(void) { raise(SIGABRT); sink = 0; }
CASE static void *spent(void)
{
    struct rlimit limit = {1, 5};
    setrlimit(RLIMIT_CPU, &limit);
    for (;;) sink = &limit;
}
CASE static void unloaded_call(void)
{
    void *page = mmap(0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void (*volatile run)(void) = (void (*)(void))page;
    munmap(page, PAGE);
    run();
    sink = 0;
}
static void *fault_in_thread(void *p) { sink = p; null_write(); return 0; }
CASE static void in_thread(void) {
    pthread_t thread;
    prctl(PR_SET_NAME, "main-thread");
    pthread_create(&thread, 0, fault_in_thread, 0);
    pthread_join(thread, 0);
}

#define ENTRY(name) {#name, (void (*)(void))name}
static const struct { const char *name; void (*run)(void); } cases[] = {
    ENTRY(null_write), ENTRY(null_read), ENTRY(null_call), ENTRY(wild_read), ENTRY(noncanonical),
    ENTRY(readonly_write), ENTRY(const_write), ENTRY(data_execute), ENTRY(divide),
    ENTRY(overflow_divide), ENTRY(illegal), ENTRY(breakpoint), ENTRY(aborts), ENTRY(asserts),
    ENTRY(double_free), ENTRY(tcache_double_free), ENTRY(invalid_free), ENTRY(heap_overrun),
    ENTRY(smash), ENTRY(fortified), ENTRY(recurse), ENTRY(thread_overflow), ENTRY(freed_use),
    ENTRY(poisoned), ENTRY(text_pointer), ENTRY(bus_past_end), ENTRY(protected_write),
    ENTRY(guard_read), ENTRY(unaligned), ENTRY(filtered), ENTRY(killed_by_other), ENTRY(raises),
    ENTRY(library_fault), ENTRY(callback), ENTRY(in_handler), ENTRY(in_thread),
    ENTRY(caught_abort), ENTRY(caught_raise), ENTRY(caught_aside), ENTRY(raised_aside),
    ENTRY(caught_badly), ENTRY(caught_overflow), ENTRY(copies_null), ENTRY(swaps), ENTRY(asks_clock),
    ENTRY(large_frame), ENTRY(text_call), ENTRY(raises_abort), ENTRY(spent), ENTRY(unloaded_call),
};

int main(int argc, char **argv) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (argc > 1 && !strcmp(argv[1], cases[i].name)) cases[i].run();
    return 3;
}
