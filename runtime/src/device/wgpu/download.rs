//! Downloads: copies into memory that the host can see, which is then mapped.

use std::ops::Range;
use std::sync::mpsc;

use super::super::{DeviceError, Download, Slice};
use super::{failed, wait};

/// Slices that lie no further apart than this many bytes are copied together with what is between them: that costs less than
/// another copy.
const GAP: u64 = 1024;

/// How slices come to lie in one piece of memory.
#[derive(Debug, Default, PartialEq)]
struct Gathered {
    /// What is copied, one behind the other.
    copies: Vec<Slice>,
    /// Where each slice then is.
    places: Vec<Range<usize>>,
    /// Bytes of all copies.
    bytes: u64,
}

impl Gathered {
    fn new(slices: &[Slice]) -> Gathered {
        let mut gathered = Gathered::default();
        for slice in slices {
            gathered.add(*slice);
        }
        gathered
    }

    fn add(&mut self, slice: Slice) {
        // Copies are of whole words.
        let end = (slice.offset + slice.bytes).next_multiple_of(wgpu::COPY_BUFFER_ALIGNMENT);
        let near = |last: &&mut Slice| {
            let after = last.offset + last.bytes;
            last.segment == slice.segment && slice.offset >= after && slice.offset - after <= GAP
        };
        let begin = match self.copies.last_mut().filter(near) {
            Some(last) => {
                let begin = self.bytes - last.bytes + slice.offset - last.offset;
                self.bytes += end - last.offset - last.bytes;
                last.bytes = end - last.offset;
                begin
            }
            None => {
                let copy = Slice { bytes: end - slice.offset, ..slice };
                self.copies.push(copy);
                self.bytes += copy.bytes;
                self.bytes - copy.bytes
            }
        };
        self.places.push(begin as usize..(begin + slice.bytes) as usize);
    }
}

/// Starts a download of slices of these segments.
pub(super) fn download(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    segments: &[wgpu::Buffer],
    slices: &[Slice],
) -> Box<dyn Download> {
    let gathered = Gathered::new(slices);
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: gathered.bytes.max(wgpu::COPY_BUFFER_ALIGNMENT),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut at = 0;
    for copy in &gathered.copies {
        encoder.copy_buffer_to_buffer(&segments[copy.segment as usize], copy.offset, &staging, at, copy.bytes);
        at += copy.bytes;
    }
    let submission = queue.submit([encoder.finish()]);
    let (sender, done) = mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| {
        // The receiver is gone when nobody waits any more.
        let _ = sender.send(result.map_err(|error| error.to_string()));
    });
    Box::new(Pending { device: device.clone(), staging, places: gathered.places, submission, done, result: None })
}

/// A copy in host-visible memory that is being mapped.
struct Pending {
    device: wgpu::Device,
    staging: wgpu::Buffer,
    places: Vec<Range<usize>>,
    submission: wgpu::SubmissionIndex,
    done: mpsc::Receiver<Result<(), String>>,
    result: Option<Result<(), String>>,
}

impl Download for Pending {
    fn poll(&mut self) -> bool {
        if self.result.is_none() {
            // Progress only; a failure shows up in the mapping's own result.
            let _ = self.device.poll(wgpu::PollType::Poll);
            self.result = self.done.try_recv().ok();
        }
        self.result.is_some()
    }

    fn wait(mut self: Box<Self>) -> Result<Vec<u8>, DeviceError> {
        if !self.poll() {
            wait(&self.device, Some(self.submission.clone()))?;
            self.result = self.done.recv().ok();
        }
        match self.result.take() {
            Some(Ok(())) => {
                let view = self.staging.get_mapped_range(..).map_err(|error| failed(error.to_string()))?;
                let mut bytes = Vec::with_capacity(self.places.iter().map(Range::len).sum());
                self.places.iter().for_each(|place| bytes.extend_from_slice(&view[place.clone()]));
                Ok(bytes)
            }
            Some(Err(why)) => Err(failed(why)),
            None => Err(failed("a download was dropped by the driver".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_together_is_copied_together() {
        let slice = |segment, offset, bytes| Slice { segment, offset, bytes };
        let found = Gathered::new(&[
            slice(1, 256, 4),
            slice(1, 512, 6),
            slice(0, 0, 4),
            slice(0, 4096, 4),
            // Not behind the last.
            slice(0, 4096, 4),
        ]);
        let copies = vec![slice(1, 256, 264), slice(0, 0, 4), slice(0, 4096, 4), slice(0, 4096, 4)];
        assert_eq!(found, Gathered { copies, places: vec![0..4, 256..262, 264..268, 268..272, 272..276], bytes: 276 });
    }
}
