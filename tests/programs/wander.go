// A Go program that checks itself: goroutines on several threads, channels, timers, a pipe in the runtime's own epoll,
// garbage, signals, the clock. The rounds end after SIGTERM.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func fail(what string) {
	fmt.Println("fail", what)
	os.Exit(1)
}

func main() {
	runtime.GOMAXPROCS(4)
	self := os.Getpid()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGUSR1)
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	reader, writer, err := os.Pipe()
	if err != nil {
		fail("pipe")
	}
	var sent, got, ticks int64
	go func() {
		buffer := make([]byte, 1000)
		for {
			n, err := reader.Read(buffer)
			if err != nil {
				fail("read")
			}
			for _, b := range buffer[:n] {
				if b != byte(got*13) {
					fail("bytes of the pipe")
				}
				got++
			}
		}
	}()
	go func() {
		for range time.Tick(2 * time.Millisecond) {
			atomic.AddInt64(&ticks, 1)
		}
	}()
	work := make(chan int)
	sums := make(chan int)
	for worker := 0; worker < 8; worker++ {
		go func() {
			for n := range work {
				tree := map[int][]int{}
				for i := 0; i < 200; i++ {
					tree[i%17] = append(tree[i%17], i*n)
				}
				sum := 0
				for _, list := range tree {
					for _, v := range list {
						sum += v
					}
				}
				sums <- sum
			}
		}()
	}
	var lock sync.Mutex
	last := time.Now()
	for round := 0; len(told) == 0; round++ {
		fmt.Println("round", round)
		before := atomic.LoadInt64(&ticks)
		go func() {
			for n := 0; n < 100; n++ {
				work <- n
			}
		}()
		sum := 0
		for n := 0; n < 100; n++ {
			sum += <-sums
		}
		if sum != 4950*19900 {
			fail("sums")
		}
		for i := 0; i < 100; i++ {
			writer.Write([]byte{byte(sent * 13)})
			sent++
		}
		syscall.Kill(self, syscall.SIGUSR1)
		select {
		case <-signals:
		case <-time.After(10 * time.Second):
			fail("no signal")
		}
		for atomic.LoadInt64(&ticks) < before+20 {
			time.Sleep(5 * time.Millisecond)
			lock.Lock()
			now := time.Now()
			if now.Before(last) || now.Sub(last) > 20*time.Second {
				fail("the clock")
			}
			last = now
			lock.Unlock()
		}
		if os.Getpid() != self {
			fail("pid")
		}
	}
	fmt.Println("done")
	os.Exit(42)
}
