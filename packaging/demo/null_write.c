/* Writes through a null pointer, three calls deep, so that there is a stack to see. */
struct order {
    int number;
};

static __attribute__((noinline)) void ship(volatile struct order *order)
{
    order->number = 42;
}

static __attribute__((noinline)) int process(volatile struct order *order)
{
    ship(order);
    return order->number;
}

int main(void)
{
    return process((volatile struct order *)0);
}
