// Tells its clocks at each line of input, in nanoseconds, and reads them all the time meanwhile: none may go back.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(void) {
    const clockid_t clocks[] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW};
    int64_t last[3] = {0, 0, 0};
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    for (;;) {
        for (int turn = 0; turn < 20; turn++)
            for (int i = 0; i < 3; i++) {
                int64_t t = now(clocks[i]);
                if (t < last[i]) {
                    printf("clock %d went back by %lld ns\n", i, (long long)(last[i] - t));
                    return 1;
                }
                last[i] = t;
            }
        char c;
        ssize_t n = read(0, &c, 1);
        if (n == 0) return 42;
        if (n == 1 && c == '\n') {
            printf("%lld %lld\n", (long long)now(CLOCK_MONOTONIC), (long long)now(CLOCK_BOOTTIME));
            fflush(stdout);
        }
    }
}
