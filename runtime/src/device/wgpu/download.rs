//! Downloads: copies into memory that the host can see, which is then mapped.

use std::sync::mpsc;

use super::super::gathered::Gathered;
use super::super::{DeviceError, Download, Slice};
use super::{failed, wait};

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
    Box::new(Pending { device: device.clone(), staging, gathered, submission, done, result: None })
}

/// A copy in host-visible memory that is being mapped.
struct Pending {
    device: wgpu::Device,
    staging: wgpu::Buffer,
    gathered: Gathered,
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
                Ok(self.gathered.pick(&view))
            }
            Some(Err(why)) => Err(failed(why)),
            None => Err(failed("a download was dropped by the driver".into())),
        }
    }
}
