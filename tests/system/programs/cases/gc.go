// Crashes in C code that Go called.
package main

// #include <stdlib.h>
// #include <string.h>
// static volatile int sink;
// __attribute__((noinline)) static int parses(const char *text) { return strlen(text); }
// __attribute__((noinline)) static void givesUp(void) { abort(); }
// __attribute__((noinline)) static void freesTwice(void) {
//     char *volatile place = malloc(40);
//     sink = place[0];
//     free(place);
//     free(place);
//     sink = 1;
// }
// __attribute__((noinline)) static int readsWild(long at) { return *(volatile int *)at; }
// __attribute__((noinline)) static int divides(int by) { return 5 / by; }
// typedef int (*callback)(int);
// __attribute__((noinline)) static int callsBack(callback called) { return called(3) + 1; }
import "C"
import "os"

type failure struct {
	operation string
	number    int
}

func (f failure) Error() string { return f.operation + " failed" }

//go:noinline
func fails() { panic(failure{"read", 3}) }

func main() {
	switch os.Args[1] {
	case "parses":
		C.parses(nil)
	case "givesUp":
		C.givesUp()
	case "freesTwice":
		C.freesTwice()
	case "readsWild":
		C.readsWild(0x123456000)
	case "divides":
		C.divides(C.int(len(os.Args) - 2))
	case "callsBack":
		C.callsBack(nil)
	case "fails":
		fails()
	}
}
