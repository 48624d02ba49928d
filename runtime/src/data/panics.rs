//! Panics that cost one sample.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether somebody on this thread will say what a panic says.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, or the first line of what it panics with, of which nothing is printed. Other threads' panics are printed
/// as ever.
pub(in crate::data) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HUSH: Once = Once::new();
    HUSH.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_CAUGHT.get() {
                usual(panic);
            }
        }));
    });
    let before = IS_CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_CAUGHT.set(before);
    done.map_err(|payload| words(payload.as_ref()))
}

/// What a panic says.
fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    text.and_then(|text| text.lines().next()).unwrap_or("without a word").to_string()
}
