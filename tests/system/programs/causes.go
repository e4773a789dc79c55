// The same for Go, run with GOTRACEBACK=crash.
package main

import (
	"fmt"
	"os"
	"sync"
)

type node struct {
	name  [32]byte
	count int
}

//go:noinline
func nilWrite(n *node) { n.count = 1 }

//go:noinline
func index(values []int, at int) int { return values[at] }

//go:noinline
func panics() { panic("the queue is closed") }

//go:noinline
func panicsError() { panic(fmt.Errorf("shard %d is lost", 17)) }

//go:noinline
func mapRace() {
	m := map[int]int{}
	var wg sync.WaitGroup
	for i := 0; i < 8; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			for n := 0; ; n++ {
				m[n%100] = i
			}
		}(i)
	}
	wg.Wait()
}

//go:noinline
func deadlock() { <-make(chan int) }

func main() {
	word := ""
	if len(os.Args) > 1 {
		word = os.Args[1]
	}
	switch word {
	case "nil_write":
		nilWrite(nil)
	case "index":
		fmt.Println(index([]int{1, 2, 3}, len(os.Args)+7))
	case "panics":
		panics()
	case "panics_error":
		panicsError()
	case "map_race":
		mapRace()
	case "deadlock":
		deadlock()
	}
	os.Exit(3)
}
