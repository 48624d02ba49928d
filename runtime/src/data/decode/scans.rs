//! Whether the pixels of a JPEG are all in the file.
//!
//! A decoder that meets a marker in the middle of a scan goes on with zeros, as libjpeg does: the rest of the image becomes
//! gray, and nobody says so. Ours is strict and refuses that in a sequential file, of which only what the headers tell is left to
//! look at: [`headers`]. The scans of a progressive file, and of one that the decoder refuses, are walked by [`repair`], to say
//! what is wrong or to mend it; without computing what the codes mean, several codes at a time.
//!
//! A file is whole if every scan that begins has a code for all its blocks before the next marker that is no restart, if
//! every component has been in a scan, and if no bit of a coefficient that was promised (successive approximation) is left
//! out: a progressive file that was cut between two scans is blurred, not gray, and as damaged.
//!
//! Restart markers confine damage: what is wrong between two of them costs the blocks up to the next, and libjpeg goes on
//! there. A little of it is repaired here: the lost blocks repeat the last good one.
//!
//! A sequential file without its codes has the standard ones, as for libjpeg-turbo: they are put into it.

use std::borrow::Cow;
use std::ops::Range;

use super::huffman::{Bits, Class, Code, STANDARD, Writer};

/// Scans of one file; as many as the decoder reads.
pub(super) const MAX_SCANS: u32 = 100;

/// Blocks for each one that may be lost between restart markers: an image with more loss is no longer what it was.
const BLOCKS_PER_LOST: u64 = 10;

/// What is wrong with a file, to follow "a JPEG file".
pub(super) type Damage = &'static str;

const TOO_SHORT: Damage = "that ends too early";
const BAD_CODE: Damage = "whose pixels are damaged";
const BAD_HEADER: Damage = "with a damaged header";
const NO_SCAN: Damage = "that lost a scan";
const TOO_MANY: Damage = "of too many scans";

/// Whether the headers of a file, up to its end marker, are sound and promise all its pixels; `size` is that which was found by
/// who opened it. That a code is there for every block is left to who decodes it.
pub(super) fn headers(bytes: &[u8], size: (u32, u32)) -> Result<(), Damage> {
    read(bytes, size, File::default()).map(|_| ())
}

/// Walks all scans of a file as well. The file, with what is wrong between two restart markers repaired.
pub(super) fn repair(bytes: &[u8], size: (u32, u32)) -> Result<Cow<'_, [u8]>, Damage> {
    let file = read(bytes, size, File { walked: true, ..File::default() })?;
    Ok(repaired(bytes, &file.repairs))
}

fn read(bytes: &[u8], size: (u32, u32), mut file: File) -> Result<File, Damage> {
    let mut segments = Segments { bytes, at: 2 };
    let mut scans = 0;
    while let Some((marker, body)) = segments.next()? {
        match marker {
            0xc0..=0xc2 => file.frame(marker, body, size)?,
            0xc4 => file.codes(body)?,
            0xdd => file.restart = u64::from(word(body, 0)?),
            0xda => {
                scans += 1;
                if scans > MAX_SCANS {
                    return Err(TOO_MANY);
                }
                if file.walked {
                    // Its marker, its length and its body lie behind.
                    file.standard_codes(body, segments.at - body.len() - 4)?;
                }
                segments.at = file.scan(body, bytes, segments.at)?;
            }
            _ => {}
        }
    }
    file.whole()?;
    Ok(file)
}

/// Bytes of a file that others shall take the place of.
struct Repair {
    place: Range<usize>,
    bytes: Vec<u8>,
}

fn repaired<'a>(bytes: &'a [u8], repairs: &[Repair]) -> Cow<'a, [u8]> {
    if repairs.is_empty() {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for repair in repairs {
        out.extend_from_slice(&bytes[at..repair.place.start]);
        out.extend_from_slice(&repair.bytes);
        at = repair.place.end;
    }
    out.extend_from_slice(&bytes[at..]);
    Cow::Owned(out)
}

/// The segments of a file, one marker after the other; what stands between them is passed over.
struct Segments<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Segments<'a> {
    /// The next marker that has a body; none at the end of the image.
    fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, Damage> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += rest.iter().position(|&byte| byte == 0xff).ok_or(TOO_SHORT)? + 1;
            match self.bytes.get(self.at).ok_or(TOO_SHORT)? {
                0xd9 => return Ok(None),
                // No markers, or markers without a body.
                0x00 | 0xff | 0x01 | 0xd0..=0xd8 => {}
                &marker => {
                    let length = usize::from(word(self.bytes, self.at + 1)?);
                    let body = self.at + 3..self.at + 1 + length.max(2);
                    self.at = body.end;
                    return Ok(Some((marker, self.bytes.get(body).ok_or(TOO_SHORT)?)));
                }
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u16, Damage> {
    match bytes.get(at..) {
        Some([high, low, ..]) => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(TOO_SHORT),
    }
}

/// What the segments have said so far.
#[derive(Default)]
struct File {
    /// Whether the codes of its scans are looked at.
    walked: bool,
    progressive: bool,
    size: (u64, u64),
    components: Vec<Component>,
    /// Codes by class (DC, AC) and number.
    codes: [[Option<Code>; 4]; 2],
    /// Minimal coded units between restarts, 0 for none.
    restart: u64,
    repairs: Vec<Repair>,
}

struct Component {
    id: u8,
    /// Blocks of a unit of an interleaved scan.
    sampling: (u64, u64),
    /// Blocks of a row, with those that only fill the last unit.
    stride: u64,
    /// For each block the coefficients that are not zero, in a progressive file: they have a bit in every refinement.
    nonzero: Vec<u64>,
    /// For each coefficient the number of its bits that are still to come; none before its first scan.
    missing: [Option<u8>; 64],
}

/// A component in a scan, with its codes.
#[derive(Clone, Copy)]
struct Part<'a> {
    component: usize,
    dc: Option<&'a Code>,
    ac: Option<&'a Code>,
}

/// Where a scan ends: at the next marker that is no restart.
fn end_of_scan(bytes: &[u8], at: usize) -> usize {
    let mut bits = Bits::new(bytes, at);
    while bits.restart() {}
    bits.at()
}

/// Which coefficients a scan brings, and which of their bits.
#[derive(Clone, Copy)]
struct Band {
    first: usize,
    last: usize,
    /// Whether bits of the coefficients came before.
    refines: bool,
}

impl File {
    fn frame(&mut self, marker: u8, body: &[u8], size: (u32, u32)) -> Result<(), Damage> {
        let found = (u32::from(word(body, 3)?), u32::from(word(body, 1)?));
        // A second frame would be another image, and another size more blocks than were allowed.
        if !self.components.is_empty() || found != size {
            return Err(BAD_HEADER);
        }
        self.progressive = marker == 0xc2;
        self.size = (u64::from(size.0), u64::from(size.1));
        let Some((&count @ 1..=4, components)) = body.get(5..).and_then(<[u8]>::split_first) else {
            return Err(BAD_HEADER);
        };
        for component in components.chunks_exact(3).take(count.into()) {
            let sampling = (u64::from(component[1] >> 4), u64::from(component[1] & 15));
            if !(1..=4).contains(&sampling.0) || !(1..=4).contains(&sampling.1) {
                return Err(BAD_HEADER);
            }
            let (stride, nonzero, missing) = (0, Vec::new(), [None; 64]);
            self.components.push(Component { id: component[0], sampling, stride, nonzero, missing });
        }
        let units = self.units();
        for component in &mut self.components {
            component.stride = units.0 * component.sampling.0;
            if self.progressive && self.walked {
                component.nonzero = vec![0; (component.stride * units.1 * component.sampling.1) as usize];
            }
        }
        Ok(())
    }

    /// The largest sampling factors.
    fn sampling(&self) -> (u64, u64) {
        let most = |of: fn(&Component) -> u64| self.components.iter().map(of).max().unwrap_or(1);
        (most(|component| component.sampling.0), most(|component| component.sampling.1))
    }

    /// Units of an interleaved scan, across and down.
    fn units(&self) -> (u64, u64) {
        let (h, v) = self.sampling();
        (self.size.0.div_ceil(8 * h), self.size.1.div_ceil(8 * v))
    }

    fn codes(&mut self, mut body: &[u8]) -> Result<(), Damage> {
        while let Some((&place, rest)) = body.split_first() {
            let [class, number] = [place >> 4, place & 15].map(usize::from);
            let kind = [Class::Dc, Class::Ac][class.min(1)];
            let slot = self.codes.get_mut(class).and_then(|codes| codes.get_mut(number)).ok_or(BAD_HEADER)?;
            body = if self.walked {
                let (code, rest) = Code::read(rest, kind).ok_or(BAD_HEADER)?;
                *slot = Some(code);
                rest
            } else {
                Code::split(rest, kind).ok_or(BAD_HEADER)?.2
            };
        }
        Ok(())
    }

    /// The codes that the scan of this header at `place` asks for and nothing brought.
    fn standard_codes(&mut self, header: &[u8], place: usize) -> Result<(), Damage> {
        if self.progressive {
            return Ok(());
        }
        let chosen =
            header.get(1..).unwrap_or_default().chunks_exact(2).take(header.first().map_or(0, |&count| count.into()));
        let mut brought = Vec::new();
        for choice in chosen {
            for (class, number) in [choice[1] >> 4, choice[1] & 15].into_iter().enumerate() {
                let Some(standard) = STANDARD[class].get(usize::from(number)) else { continue };
                if self.codes[class][usize::from(number)].is_none() {
                    let body = [&[(class as u8) << 4 | number], *standard].concat();
                    self.codes(&body)?;
                    brought.extend(body);
                }
            }
        }
        if !brought.is_empty() {
            let length = (brought.len() as u16 + 2).to_be_bytes();
            let bytes = [&[0xff, 0xc4], &length[..], &brought].concat();
            self.repairs.push(Repair { place: place..place, bytes });
        }
        Ok(())
    }

    /// Passes over the scan that follows a header, or walks it; where it ends.
    fn scan(&mut self, header: &[u8], bytes: &[u8], at: usize) -> Result<usize, Damage> {
        let count = usize::from(*header.first().ok_or(BAD_HEADER)?);
        let (Some(chosen), Some(&[first, last, bits])) =
            (header.get(1..1 + 2 * count), header.get(1 + 2 * count..4 + 2 * count))
        else {
            return Err(BAD_HEADER);
        };
        let band = match self.progressive {
            true => Band { first: first.into(), last: last.into(), refines: bits >> 4 != 0 },
            false => Band { first: 0, last: 63, refines: false },
        };
        // Only first coefficients are interleaved, and they have scans of their own.
        let dc_only = band.last == 0;
        if band.first > band.last || band.last > 63 || (self.progressive && (band.first == 0) != dc_only) {
            return Err(BAD_HEADER);
        }
        let mut touched = Vec::with_capacity(count);
        for pair in chosen.chunks_exact(2) {
            touched.push(self.components.iter().position(|component| component.id == pair[0]).ok_or(BAD_HEADER)?);
        }
        if touched.is_empty() || (self.progressive && !dc_only && touched.len() > 1) {
            return Err(BAD_HEADER);
        }
        let end = if self.walked { self.walk_scan(chosen, &touched, band, bytes, at)? } else { end_of_scan(bytes, at) };
        for component in touched {
            let (before, left) = if self.progressive { (bits >> 4, bits & 15) } else { (0, 0) };
            let missing = &mut self.components[component].missing[band.first..=band.last];
            // Of two scans with the same blocks, the first might be the one that lost some.
            if !self.progressive && missing[0].is_some() {
                return Err(BAD_HEADER);
            }
            if band.refines && missing.iter().any(|missing| *missing != Some(before)) {
                return Err(NO_SCAN);
            }
            missing.fill(Some(left));
        }
        Ok(end)
    }

    /// Walks the scan of these components; where it ends.
    fn walk_scan(
        &mut self,
        chosen: &[u8],
        touched: &[usize],
        band: Band,
        bytes: &[u8],
        at: usize,
    ) -> Result<usize, Damage> {
        let mut nonzero: Vec<Vec<u64>> =
            self.components.iter_mut().map(|component| std::mem::take(&mut component.nonzero)).collect();
        let code = |class: usize, number: u8| self.codes[class].get(usize::from(number)).and_then(Option::as_ref);
        let part = |(&component, pair): (&usize, &[u8])| {
            let (dc, ac) = (code(0, pair[1] >> 4), code(1, pair[1] & 15));
            Part { component, dc, ac }
        };
        let parts: Vec<Part<'_>> = touched.iter().zip(chosen.chunks_exact(2)).map(part).collect();
        let mut walk = Walk { band, bits: Bits::new(bytes, at), run: 0 };
        let repairs = self.walk(&mut walk, &parts, &mut nonzero)?;
        let end = walk.bits.next_marker();
        self.repairs.extend(repairs);
        for (component, nonzero) in self.components.iter_mut().zip(nonzero) {
            component.nonzero = nonzero;
        }
        Ok(end)
    }

    /// Walks the units of a scan, from one restart marker to the next.
    fn walk(&self, walk: &mut Walk<'_>, parts: &[Part<'_>], nonzero: &mut [Vec<u64>]) -> Result<Vec<Repair>, Damage> {
        let (across, down) = self.units_of(parts);
        let (units, interval) = (across * down, if self.restart == 0 { u64::MAX } else { self.restart });
        let (mut repairs, mut lost, mut unit) = (Vec::new(), 0, 0);
        while unit < units {
            if unit > 0 && !walk.bits.restart() {
                return Err(TOO_SHORT);
            }
            walk.run = 0;
            let (begin, end) = (walk.bits.clone(), unit.saturating_add(interval).min(units));
            while unit < end {
                let before = walk.bits.used();
                let Err(damage) = self.unit(walk, parts, nonzero, (unit % across, unit / across)) else {
                    unit += 1;
                    continue;
                };
                lost += end - unit;
                // Only a restart marker that follows tells where to go on.
                let confined = !self.progressive && end < units && walk.bits.clone().restart();
                if !confined || lost * BLOCKS_PER_LOST > units {
                    return Err(damage);
                }
                repairs.push(self.repair(parts, begin.clone(), before, end - unit).ok_or(damage)?);
                unit = end;
            }
        }
        Ok(repairs)
    }

    /// Units of a scan, across and down.
    fn units_of(&self, parts: &[Part<'_>]) -> (u64, u64) {
        let [part] = parts else { return self.units() };
        // A single component has its own blocks as units, without those that only fill.
        let (component, most) = (&self.components[part.component], self.sampling());
        let across = (self.size.0 * component.sampling.0).div_ceil(8 * most.0);
        (across, (self.size.1 * component.sampling.1).div_ceil(8 * most.1))
    }

    fn unit(
        &self,
        walk: &mut Walk<'_>,
        parts: &[Part<'_>],
        nonzero: &mut [Vec<u64>],
        (x, y): (u64, u64),
    ) -> Result<(), Damage> {
        for part in parts {
            let component = &self.components[part.component];
            let (h, v) = if parts.len() == 1 { (1, 1) } else { component.sampling };
            for row in y * v..(y + 1) * v {
                for column in x * h..(x + 1) * h {
                    walk.block(part, nonzero[part.component].get_mut((row * component.stride + column) as usize))?;
                }
            }
        }
        Ok(())
    }

    /// The good bits from the beginning of an interval, and `lost` units in which nothing changes.
    fn repair(&self, parts: &[Part<'_>], mut begin: Bits<'_>, good: u64, lost: u64) -> Option<Repair> {
        let mut unit = Vec::new();
        for part in parts {
            let (h, v) = if parts.len() == 1 { (1, 1) } else { self.components[part.component].sampling };
            // No difference, and no other coefficients.
            let block = [part.dc?.of(0)?, part.ac?.of(0)?];
            (0..h * v).for_each(|_| unit.extend(block));
        }
        let place = begin.at()..begin.next_marker();
        let mut writer = Writer::default();
        let mut left = good - begin.used();
        while left > 0 {
            let count = left.min(16) as u32;
            writer.put(begin.take(count)?, count);
            left -= u64::from(count);
        }
        (0..lost).flat_map(|_| &unit).for_each(|&(code, length)| writer.put(code, length));
        Some(Repair { place, bytes: writer.finish() })
    }

    /// Whether something is missing after the last scan.
    fn whole(&self) -> Result<(), Damage> {
        let lost = |component: &Component| {
            component.missing[0].is_none() || component.missing.iter().flatten().any(|&left| left > 0)
        };
        if self.components.is_empty() || self.components.iter().any(lost) { Err(NO_SCAN) } else { Ok(()) }
    }
}

/// A walk through one scan.
struct Walk<'a> {
    band: Band,
    bits: Bits<'a>,
    /// Blocks to come that have no more coefficients in this band.
    run: u32,
}

impl Walk<'_> {
    /// A block of a component; with its coefficients that are not zero, in a progressive file.
    fn block(&mut self, part: &Part<'_>, nonzero: Option<&mut u64>) -> Result<(), Damage> {
        let Some(nonzero) = nonzero else { return self.sequential(part) };
        match (self.band.first, self.band.refines) {
            (0, false) => self.first(part),
            (0, true) => self.skip(1),
            (_, false) => self.begin(part, nonzero),
            (_, true) => self.refine(part, nonzero),
        }
    }

    /// A whole block.
    fn sequential(&mut self, part: &Part<'_>) -> Result<(), Damage> {
        self.first(part)?;
        let code = part.ac.ok_or(BAD_HEADER)?;
        if self.bits.pass_block(code) { Ok(()) } else { Err(self.damage()) }
    }

    /// A first coefficient.
    fn first(&mut self, part: &Part<'_>) -> Result<(), Damage> {
        match self.bits.pass(part.dc.ok_or(BAD_HEADER)?) {
            Some(_) => Ok(()),
            None => Err(self.damage()),
        }
    }

    /// The first bits of a band.
    fn begin(&mut self, part: &Part<'_>, nonzero: &mut u64) -> Result<(), Damage> {
        if self.run > 0 {
            self.run -= 1;
            return Ok(());
        }
        let code = part.ac.ok_or(BAD_HEADER)?;
        let mut at = self.band.first;
        while at <= self.band.last {
            let symbol = self.symbol(code)?;
            match (symbol >> 4, symbol & 15) {
                (15, 0) => at += 16,
                (bits, 0) => {
                    self.run = (1 << bits) - 1 + self.bits.take(bits.into()).ok_or(TOO_SHORT)?;
                    break;
                }
                (zeros, size) => {
                    at += usize::from(zeros);
                    *nonzero |= 1u64.checked_shl(at as u32).unwrap_or(0);
                    at += 1;
                    self.skip(size.into())?;
                }
            }
        }
        Ok(())
    }

    /// One more bit of a band: for each coefficient that is not zero, and with a sign for each that ceases to be.
    fn refine(&mut self, part: &Part<'_>, nonzero: &mut u64) -> Result<(), Damage> {
        let code = part.ac.ok_or(BAD_HEADER)?;
        let mut at = self.band.first;
        while self.run == 0 && at <= self.band.last {
            let symbol = self.symbol(code)?;
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            if size > 0 {
                self.skip(1)?;
            } else if zeros < 15 {
                self.run = (1 << zeros) + self.bits.take(zeros.into()).ok_or(TOO_SHORT)?;
                break;
            }
            while at <= self.band.last {
                if *nonzero >> at & 1 == 1 {
                    self.skip(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                at += 1;
            }
            if size > 0 && at <= self.band.last {
                *nonzero |= 1 << at;
            }
            at += 1;
        }
        if self.run > 0 {
            self.run -= 1;
            let rest = (at..=self.band.last).filter(|at| *nonzero >> at & 1 == 1).count();
            for _ in 0..rest {
                self.skip(1)?;
            }
        }
        Ok(())
    }

    fn symbol(&mut self, code: &Code) -> Result<u8, Damage> {
        self.bits.symbol(code).ok_or_else(|| self.damage())
    }

    /// Why there is no code.
    #[cold]
    fn damage(&mut self) -> Damage {
        if self.bits.exhausted() { TOO_SHORT } else { BAD_CODE }
    }

    fn skip(&mut self, count: u32) -> Result<(), Damage> {
        self.bits.take(count).map(|_| ()).ok_or(TOO_SHORT)
    }
}
