// The same for C++: what is thrown and never caught, and what else ends in std::terminate.
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>
#include <cstring>

#define CASE __attribute__((noinline))

static char *volatile kept;

namespace app {
struct ConfigError : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Plain {};
struct OwnError : std::exception {  // many programs have one of these, with what() for the message
    std::string where, text;
    explicit OwnError(std::string t) : where("in the parser"), text(std::move(t)) {}
    const char *what() const noexcept override { return text.c_str(); }
};
struct SilentError : std::exception {
    std::string file = "/etc/colours";
    const char *what() const noexcept override { return "the colours are wrong"; }
};
struct WholeError : std::runtime_error {
    std::string whole;
    explicit WholeError(const std::string &t) : std::runtime_error(t), whole("line 7: " + t) {}
    const char *what() const noexcept override { return whole.c_str(); }
};
struct Traced {
    virtual ~Traced() = default;
    int frames = 3;
};
struct BothError : Traced, std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct Shape {
    virtual ~Shape() = default;
    virtual int area() const = 0;
};
struct Square final : Shape {
    int side = 2;
    int area() const override { return side * side; }
};
template <typename T> struct Store {
    CASE const T &at(std::size_t i) const { return values.at(i); }
    std::vector<T> values;
};

CASE void runtime_error() { throw std::runtime_error("the disk is on fire"); }
CASE void derived_error() { throw ConfigError("no such key: " + std::string("colour")); }
CASE void out_of_range() { Store<int>{{1, 2, 3}}.at(7); }
CASE void bad_alloc() { volatile std::size_t most = static_cast<std::size_t>(-1) / 2; kept = new char[most]; }
CASE void throws_text() { throw "just text"; }
CASE void throws_int() { throw 42; }
CASE void throws_plain() { throw Plain{}; }
CASE void own_error() { throw OwnError("no such colour: " + std::string("puce")); }
CASE void silent_error() { throw SilentError(); }
CASE void whole_error() { throw WholeError("expected a colour"); }
CASE void both_error() { throw BothError("two bases, one message"); }
CASE void from_noexcept() noexcept { runtime_error(); }
CASE void thread_not_joined() { std::thread([] { for (;;) {} }); }
CASE void virtual_call(Shape *shape) { volatile int n = shape->area(); (void)n; }
CASE void null_object() { Shape *volatile none = nullptr; virtual_call(none); }
CASE void fill(std::vector<int> *values) { values->push_back(1); }
CASE void null_vector() { std::vector<int> *volatile none = nullptr; fill(none); }
CASE void rethrown() { try { runtime_error(); } catch (...) { throw; } }
}

int main(int argc, char **argv) {
    const std::string word = argc > 1 ? argv[1] : "";
    if (word == "runtime_error") app::runtime_error();
    if (word == "derived_error") app::derived_error();
    if (word == "out_of_range") app::out_of_range();
    if (word == "bad_alloc") app::bad_alloc();
    if (word == "throws_text") app::throws_text();
    if (word == "throws_int") app::throws_int();
    if (word == "throws_plain") app::throws_plain();
    if (word == "own_error") app::own_error();
    if (word == "silent_error") app::silent_error();
    if (word == "whole_error") app::whole_error();
    if (word == "both_error") app::both_error();
    if (word == "from_noexcept") app::from_noexcept();
    if (word == "thread_not_joined") app::thread_not_joined();
    if (word == "null_object") app::null_object();
    if (word == "null_vector") app::null_vector();
    if (word == "rethrown") app::rethrown();
    return 3;
}
