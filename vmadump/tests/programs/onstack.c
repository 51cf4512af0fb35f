// Takes a signal on an alternate stack if it had one; it has none.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static void told(int signal) {
    (void)signal;
    if (write(1, "told\n", 5) != 5)
        _exit(1);
}

int main(void) {
    struct sigaction action = { .sa_handler = told, .sa_flags = SA_ONSTACK | SA_RESTART };
    sigaction(SIGUSR1, &action, NULL);
    for (;;) {
        puts("runs");
        fflush(stdout);
    }
}
