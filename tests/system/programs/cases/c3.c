/* Crashes whose cause is not the instruction's: each function named on the command line is one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <iconv.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define OUTLINE __attribute__((noinline, noclone))

volatile int sink, zero;
int *volatile null;

OUTLINE __attribute__((optimize("no-stack-protector"))) void returns_low(void) {
    void *volatile *frame = __builtin_frame_address(0);
    frame[1] = (void *)0x1234;
}

OUTLINE void unaligned(void) {
    char buffer[16];
    __asm__ volatile("pushf; orl $0x40000, (%%rsp); popf; movl $5, %0"
                     : "=m"(*(int *)(buffer + 1)));
    sink = buffer[2];
}

OUTLINE void run_code(void) {
    /* xor eax, eax; mov eax, [rax]; ret: made at run time, without a frame */
    unsigned char code[] = {0x31, 0xc0, 0x8b, 0x00, 0xc3};
    void *page = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, code, sizeof code);
    ((int (*)(void))page)();
    sink = 1;
}

static void aborts(int number, siginfo_t *info, void *context) { abort(); }

OUTLINE void refused(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_uname, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, rules};
    char name[1024];
    struct sigaction action = {.sa_sigaction = aborts, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    syscall(SYS_uname, name);
    sink = name[0];
}

OUTLINE void jumps_back(void) {
    static jmp_buf place;
    memset(place, 0x41, sizeof place);
    longjmp(place, 1);
}

OUTLINE int deep(int n) {
    char block[256];
    memset(block, n, sizeof block);
    sink = block[n & 255];
    return deep(n + 1) + block[3];
}

static ucontext_t coroutine, back;
static void runs_deep(void) { deep(1); }

OUTLINE void coroutine_overflow(void) {
    char *stack = mmap(0, 1 << 17, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(stack + 4096, (1 << 17) - 4096, 3);
    getcontext(&coroutine);
    coroutine.uc_stack.ss_sp = stack + 4096;
    coroutine.uc_stack.ss_size = (1 << 17) - 4096;
    coroutine.uc_link = &back;
    makecontext(&coroutine, runs_deep, 0);
    swapcontext(&back, &coroutine);
}

OUTLINE void text_table(void) {
    struct table { void (**functions)(void *); } *object = malloc(64);
    object->functions = (void *)0x4141414141414141;
    object->functions[2](object);
    sink = 1;
}

OUTLINE int adds(int a) { return a + 0x7fffffff; }

OUTLINE void *large_array(void *unused) {
    char array[((long)zero + 64) << 20];
    memset(array, 1, sizeof array);
    sink = array[77];
    return unused;
}

OUTLINE void thread_array(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, large_array, NULL);
    pthread_join(thread, NULL);
}

OUTLINE void writes_itself(void) {
    *(char *)writes_itself = 1;
    sink = 1;
}

OUTLINE void converts(void) {
    char *in = "x", *out = (char *)0x1234567000;
    size_t in_size = 1, out_size = 4;
    sink = iconv(iconv_open("UTF-16", "UTF-8"), &in, &in_size, &out, &out_size);
}

int main(int count, char **words) {
    const char *word = words[1];
    if (!strcmp(word, "returns_low")) returns_low();
    if (!strcmp(word, "unaligned")) unaligned();
    if (!strcmp(word, "run_code")) run_code();
    if (!strcmp(word, "refused")) refused();
    if (!strcmp(word, "jumps_back")) jumps_back();
    if (!strcmp(word, "coroutine_overflow")) coroutine_overflow();
    if (!strcmp(word, "text_table")) text_table();
    if (!strcmp(word, "thread_array")) thread_array();
    if (!strcmp(word, "writes_itself")) writes_itself();
    if (!strcmp(word, "converts")) converts();
    if (!strcmp(word, "adds")) sink = adds(5 + zero);
    sink = 2;
    return 0;
}
