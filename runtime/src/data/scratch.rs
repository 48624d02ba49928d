//! Buffers of bytes that a thread keeps from one sample to the next.
//!
//! A decoded photograph takes megabytes. An allocator gives so much back to the system and gets it again page by page, each of
//! them by a fault. So files, decoded images and crops lie in buffers that are given back here. Who gives nothing back only
//! loses that; a buffer that is taken is empty, so nobody sees what was in it.

use std::borrow::Cow;
use std::cell::RefCell;

use super::RgbImage;

/// Buffers that a thread keeps: a file, the decoded image, its crop, the resized crop.
const MOST: usize = 4;

/// Largest buffer that is kept, so that one huge image does not stay in memory: 22 million pixels.
const LARGEST: usize = 64 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for `bytes`: the smallest of those kept that is large enough, or a new one.
pub(super) fn take(bytes: usize) -> Vec<u8> {
    let kept = KEPT.with_borrow_mut(|kept| {
        let fitting = (0..kept.len()).filter(|&at| kept[at].capacity() >= bytes);
        fitting.min_by_key(|&at| kept[at].capacity()).map(|at| kept.swap_remove(at))
    });
    kept.unwrap_or_else(|| Vec::with_capacity(bytes))
}

/// A buffer of `bytes` zeros.
pub(super) fn zeros(bytes: usize) -> Vec<u8> {
    let mut buffer = take(bytes);
    buffer.resize(bytes, 0);
    buffer
}

/// Keeps a buffer for the next sample; of too many the largest stay.
pub(super) fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() > LARGEST {
        return;
    }
    buffer.clear();
    KEPT.with_borrow_mut(|kept| {
        kept.push(buffer);
        if kept.len() > MOST
            && let Some(smallest) = (0..kept.len()).min_by_key(|&at| kept[at].capacity())
        {
            kept.swap_remove(smallest);
        }
    });
}

/// Keeps the pixels of an image that nobody needs any more.
pub(super) fn give_image(image: Cow<'_, RgbImage>) {
    if let Cow::Owned(image) = image {
        give(image.pixels);
    }
}

/// Keeps the bytes of a file that nobody needs any more.
pub(super) fn give_file(bytes: Cow<'_, [u8]>) {
    if let Cow::Owned(bytes) = bytes {
        give(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given back is taken again, empty; the smallest that is large enough, and never too many or too large ones.
    #[test]
    fn buffers_come_back_empty() {
        for size in [10, 1000, 100, 20, 50] {
            give(vec![7; size]);
        }
        let found = [60, 60, 10, 60].map(take);
        assert_eq!(found.each_ref().map(Vec::capacity), [100, 1000, 20, 60]);
        assert!(found.iter().all(Vec::is_empty));
        give(Vec::with_capacity(LARGEST + 1));
        assert_eq!(zeros(30), [0; 30]);
        assert_eq!(take(1).capacity(), 1);
    }
}
