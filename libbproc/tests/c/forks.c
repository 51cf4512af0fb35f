/* Children of processes with threads, against a stand-in for the agent: to node 1 they go, and do so where they are,
   to node 0 they may not. libc works in them, the handlers of pthread_atfork have run, nothing of the caller is changed. */
#include "check.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/syscall.h>

enum { ROUNDS = 50, FORKERS = 2 };

static pthread_mutex_t guarded = PTHREAD_MUTEX_INITIALIZER;
static volatile int prepared, in_parent, in_child, children, over, raised;
static __thread volatile int seen;

static void prepare(void)
{
    pthread_mutex_lock(&guarded);
    prepared++;
}

static void parent(void)
{
    in_parent++;
    pthread_mutex_unlock(&guarded);
}

static void child(void)
{
    in_child = getpid();
    pthread_mutex_unlock(&guarded);
}

static void on_child(int signal)
{
    (void)signal;
    children++;
}

static void on_sys(int signal, siginfo_t *info, void *context)
{
    (void)context;
    CHECK(signal == SIGSYS && info->si_signo == SIGSYS && info->si_code == SI_TKILL);
    seen++;
}

/* Has libc's locks most of the time. */
static void *busy(void *size)
{
    while (!over) {
        void *memory[64];
        for (int i = 0; i < 64; i++)
            memory[i] = malloc(*(int *)size * (i + 1));
        for (int i = 0; i < 64; i++)
            free(memory[i]);
    }
    return NULL;
}

/* The signal is the program's. */
static void *raising(void *nothing)
{
    for (raised = 0; !over; raised++) {
        CHECK(raise(SIGSYS) == 0 && seen == raised + 1);
    }
    return nothing;
}

/* A process that has forked meanwhile can do all that. */
static void *forking(void *nothing)
{
    while (!over) {
        int status;
        IN_CHILD(status, {
            seen = 0;
            CHECK(raise(SIGSYS) == 0 && seen == 1);
            FAILS(bproc_rfork(0), EPERM);
            CHECK(raise(SIGSYS) == 0 && seen == 2);
            _exit(3);
        });
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    }
    return nothing;
}

static void *rforks(void *nothing)
{
    for (int round = 0; round < ROUNDS; round++) {
        int ends[2];
        char byte;
        FAILS(bproc_rfork(0), EPERM);
        CHECK(pipe(ends) == 0);
        pid_t self = getpid();
        int pid = bproc_rfork(1), number = errno;
        if (getpid() != self) {
            CHECK(pid == 0 && in_child == getpid() && getppid() == self);
            CHECK(pthread_mutex_trylock(&guarded) == 0);
            for (int size = 1; size < 100000; size *= 2)
                free(malloc(size));
            FILE *file = fopen("/dev/null", "w");
            CHECK(file && fprintf(file, "%d", round) > 0 && fclose(file) == 0);
            CHECK(write(ends[1], "!", 1) == 1);
            _exit(0);
        }
        /* It has ended, and not on a node. */
        CHECK(pid == -1 && number == EINTR);
        CHECK(close(ends[1]) == 0 && read(ends[0], &byte, 1) == 1 && close(ends[0]) == 0);
    }
    return nothing;
}

/* A sandbox that does not let system calls be given back: the child is an ordinary one, which tells of its end. */
static void in_a_sandbox(void)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 59, 0, 1), /* PR_SET_SYSCALL_USER_DISPATCH */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EACCES),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {sizeof(program) / sizeof(*program), program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) == 0);
    int before = prepared, status;
    in_parent = before;
    FAILS(bproc_rfork(0), EPERM);
    CHECK(prepared == before + 1 && in_parent == prepared && children == 1);
    CHECK(waitpid(-1, &status, WNOHANG) == -1);
    seen = 0;
    CHECK(raise(SIGSYS) == 0 && seen == 1);
}

int main(void)
{
    int small = 16, large = 4096, status;
    pthread_t others[4], forkers[FORKERS];
    struct sigaction action, before, after;
    sigset_t set;

    begin();
    CHECK(pthread_atfork(prepare, parent, child) == 0);
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_child;
    action.sa_flags = SA_RESTART;
    CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
    memset(&action, 0, sizeof(action));
    action.sa_sigaction = on_sys;
    action.sa_flags = SA_SIGINFO;
    CHECK(sigemptyset(&action.sa_mask) == 0 && sigaddset(&action.sa_mask, SIGUSR1) == 0);
    CHECK(sigaction(SIGSYS, &action, NULL) == 0 && sigaction(SIGSYS, NULL, &before) == 0);

    /* By itself, with a signal of its own waiting. */
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGSYS) == 0 && sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK(raise(SIGSYS) == 0);
    FAILS(bproc_rfork(0), EPERM);
    CHECK(seen == 0 && sigpending(&set) == 0 && sigismember(&set, SIGSYS));
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGSYS) == 0 && sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
    CHECK(seen == 1 && prepared == 1 && in_parent == 1 && in_child == 0 && children == 0);

    IN_CHILD(status, {
        in_a_sandbox();
        _exit(3);
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    /* That was a fork, and its end. */
    prepared = in_parent = 1;
    children = 0;

    CHECK(pthread_create(&others[0], NULL, busy, &small) == 0 && pthread_create(&others[1], NULL, busy, &large) == 0);
    CHECK(pthread_create(&others[2], NULL, raising, NULL) == 0);
    for (int i = 0; i < FORKERS; i++)
        CHECK(pthread_create(&forkers[i], NULL, rforks, NULL) == 0);
    for (int i = 0; i < FORKERS; i++)
        CHECK(pthread_join(forkers[i], NULL) == 0);
    CHECK(prepared == 1 + 2 * FORKERS * ROUNDS && in_parent == prepared && in_child == 0 && children == 0);
    CHECK(pthread_create(&others[3], NULL, forking, NULL) == 0);
    rforks(NULL);
    over = 1;
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    CHECK(raised > 0 && sigaction(SIGSYS, NULL, &after) == 0);
    CHECK(after.sa_sigaction == on_sys && after.sa_flags == before.sa_flags);
    CHECK(sigismember(&after.sa_mask, SIGUSR1) && !sigismember(&after.sa_mask, SIGUSR2));
    return 0;
}
