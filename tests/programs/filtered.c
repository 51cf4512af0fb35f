// Threads make a call without end that a filter forbids, and look whether it ever works. Until SIGTERM. With an argument only they
// have the filter, and not the first thread.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 8 };

static volatile sig_atomic_t told;

static void on_term(int sig) {
    (void)sig;
    told = 1;
}

static void filter(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {4, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog)) _exit(8);
}

static void *spin(void *own) {
    if (own) filter();
    while (!told) {
        errno = 0;
        long got = syscall(SYS_getsid, 0);
        if (got != -1 || errno != ENOTTY) {
            printf("the filter let it pass: %ld, errno %d\n", got, errno);
            fflush(stdout);
            _exit(9);
        }
    }
    return own;
}

int main(int argc, char **argv) {
    signal(SIGTERM, on_term);
    if (argc == 1) filter();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], 0, spin, argc > 1 ? argv[1] : 0)) return 7;
    for (int round = 0; !told; round++) {
        printf("round %d\n", round);
        fflush(stdout);
        usleep(10000);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
    puts("done");
    return 42;
}
