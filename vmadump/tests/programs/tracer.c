// Traces a child of its own, or one that is another's by then, tells who it is, and waits for its end.
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments) {
    int child = count == 2 && !strcmp(arguments[1], "child"), pipes[2], status;
    pid_t traced = 0, between;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (pipe(pipes)) return 1;
    between = fork();
    if (!between) {
        // The child itself, or the parent of one.
        pid_t it = child ? getpid() : fork();
        if (it == 0 || child) prctl(PR_SET_PDEATHSIG, child ? SIGKILL : 0);
        if (it) write(pipes[1], &it, sizeof it);
        if (it && !child) _exit(0);
        close(pipes[0]);
        close(pipes[1]);
        for (;;) pause();
    }
    if (!child) waitpid(between, &status, 0);
    if (read(pipes[0], &traced, sizeof traced) != sizeof traced) return 2;
    close(pipes[0]);
    close(pipes[1]);
    if (ptrace(PTRACE_SEIZE, traced, 0, 0)) return 3;
    printf("%d\n", traced);
    fflush(stdout);
    if (waitpid(traced, &status, __WALL) != traced || !WIFSIGNALED(status)) return 4;
    return 42;
}
