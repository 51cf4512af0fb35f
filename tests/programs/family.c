// A parent with three children, each of which has one child after the other and waits for it. Says what is wrong.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHILDREN 3

static int seconds;

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void check(const char *who, pid_t got, pid_t wanted, int status, int code) {
    if (got < 0) printf("%s %d: errno %d instead of %d\n", who, getpid(), errno, wanted);
    else if (wanted && got != wanted) printf("%s %d: %d instead of %d\n", who, getpid(), got, wanted);
    else if (status != code << 8) printf("%s %d: status %d of %d instead of code %d\n", who, getpid(), status, got, code);
    fflush(stdout);
}

static void child(int number) {
    alarm(seconds + 60);
    long end = now() + seconds * 1000 + number * 300;
    for (int n = 0; now() < end; n++) {
        pid_t pid = fork();
        if (!pid) usleep(20000 + getpid() % 7 * 30000), _exit(n % 50);
        int status = 0;
        pid_t got = waitpid(n % 2 ? pid : -1, &status, 0);
        check("child", got, pid, status, n % 50);
    }
    _exit(60 + number);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    seconds = atoi(argv[1]);
    alarm(seconds + 60);
    pid_t pids[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        if (!(pids[i] = fork())) child(i);
    for (int i = 0; i < CHILDREN; i++) printf("child %d\n", pids[i]);
    fflush(stdout);
    for (int i = 0; i < CHILDREN; i++) {
        int status = 0;
        pid_t got = wait(&status);
        int which = 0;
        while (which < CHILDREN - 1 && pids[which] != got) which++;
        check("parent", got, pids[which], status, 60 + which);
    }
    printf("done\n");
    return 0;
}
