/* Tells that it runs, opens and closes files for so many microseconds, with so many threads beside, and ends. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void *sleeps(void *unused)
{
	(void)unused;
	for (;;)
		pause();
}

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
	long long end = now() + (argc > 1 ? atoll(argv[1]) : 0);
	int threads = argc > 2 ? atoi(argv[2]) : 0;
	pthread_t thread;

	while (threads-- > 0)
		pthread_create(&thread, NULL, sleeps, NULL);
	puts("runs");
	fflush(stdout);
	while (now() < end)
		close(open("/dev/null", O_RDONLY));
	exit(42);
}
