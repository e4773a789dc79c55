// The same for Rust, built with panic=abort.
/// Hides a value from the optimizer, as std::hint::black_box does since Rust 1.66.
#[inline(never)]
fn black_box<T>(value: T) -> T {
    let kept = std::mem::ManuallyDrop::new(value);
    unsafe { std::ptr::read_volatile(&*kept) }
}

mod store {
    #[inline(never)]
    pub fn literal() { panic!("the store is broken"); }
    #[inline(never)]
    pub fn formatted(n: u32) { panic!("bad shard {} of {}", n, 16); }
    #[inline(never)]
    pub fn index(values: &[u32], at: usize) -> u32 { values[at] }
    #[inline(never)]
    pub fn unwrap_none(value: Option<u32>) -> u32 { value.unwrap() }
    #[inline(never)]
    pub fn expect_error(text: &str) -> u32 { text.parse::<u32>().expect("a port number") }
    #[inline(never)]
    pub fn null_write(p: *mut u32) { unsafe { p.write_volatile(7) } }
    #[inline(never)]
    pub fn overflow(depth: u64) -> u64 {
        let frame = [depth; 64];
        super::black_box(&frame);
        overflow(depth + 1) + frame[(depth % 64) as usize]
    }
}

fn main() {
    match std::env::args().nth(1).unwrap_or_default().as_str() {
        "literal" => store::literal(),
        "formatted" => store::formatted(black_box(17)),
        "index" => { black_box(store::index(&[1, 2, 3], black_box(9))); }
        "unwrap_none" => { black_box(store::unwrap_none(black_box(None))); }
        "expect_error" => { black_box(store::expect_error(black_box("eighty"))); }
        "null_write" => store::null_write(black_box(std::ptr::null_mut())),
        "overflow" => { black_box(store::overflow(black_box(1))); }
        _ => std::process::exit(3),
    }
}
