/* Tells of each change of its child, until that has ended. First of all "child PID". The child says "here" at each SIGUSR1. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void here(int signal)
{
    (void)signal;
    if (write(1, "here\n", 5) != 5)
        _exit(1);
}

int main(void)
{
    signal(SIGUSR1, here);
    pid_t child = fork();
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (child == 0) {
        setpgid(0, 0);
        alarm(120);
        for (;;)
            pause();
    }
    setpgid(child, child);
    printf("child %d\n", child);
    for (;;) {
        int status;
        if (waitpid(child, &status, WUNTRACED | WCONTINUED) != child)
            return 1;
        if (WIFSTOPPED(status)) {
            printf("stopped %d\n", WSTOPSIG(status));
        } else if (WIFCONTINUED(status)) {
            puts("continued");
        } else {
            printf("ended %x\n", status);
            return 0;
        }
    }
}
