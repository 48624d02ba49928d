//! The codes of a JPEG's scans, and their bits.

/// Bits that are looked up at once; longer codes are rare, and often there are several in as many.
const AT_ONCE: u32 = 10;

/// Coefficients of a block.
const BLOCK: u8 = 64;

/// What codes are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// First coefficients of blocks.
    Dc,
    /// The others.
    Ac,
}

/// The codes of a file that brings none, as frames of Motion JPEG do (ITU-T T.81, annex K.3.3): by class and number, as
/// [`Code::read`] takes them.
#[rustfmt::skip]
pub(super) const STANDARD: [[&[u8]; 2]; 2] = [
    [
        // First coefficients of brightness: table K.3.
        b"\x00\x01\x05\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\
              \x08\x09\x0a\x0b",
        // Of colour: K.4.
        b"\x00\x03\x01\x01\x01\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\
              \x08\x09\x0a\x0b",
    ],
    [
        // The others of brightness: K.5.
        b"\x00\x02\x01\x03\x03\x02\x04\x03\x05\x05\x04\x04\x00\x00\x01\x7d\x01\x02\x03\x00\x04\x11\x05\x12\
              \x21\x31\x41\x06\x13\x51\x61\x07\x22\x71\x14\x32\x81\x91\xa1\x08\x23\x42\xb1\xc1\x15\x52\xd1\xf0\
              \x24\x33\x62\x72\x82\x09\x0a\x16\x17\x18\x19\x1a\x25\x26\x27\x28\x29\x2a\x34\x35\x36\x37\x38\x39\
              \x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68\x69\
              \x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94\x95\x96\x97\x98\
              \x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\xc4\xc5\
              \xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\
              \xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa",
        // Of colour: K.6.
        b"\x00\x02\x01\x02\x04\x04\x03\x04\x07\x05\x04\x04\x00\x01\x02\x77\x00\x01\x02\x03\x11\x04\x05\x21\
              \x31\x06\x12\x41\x51\x07\x61\x71\x13\x22\x32\x81\x08\x14\x42\x91\xa1\xb1\xc1\x09\x23\x33\x52\xf0\
              \x15\x62\x72\xd1\x0a\x16\x24\x34\xe1\x25\xf1\x17\x18\x19\x1a\x26\x27\x28\x29\x2a\x35\x36\x37\x38\
              \x39\x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58\x59\x5a\x63\x64\x65\x66\x67\x68\
              \x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94\x95\x96\
              \x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\
              \xc4\xc5\xc6\xc7\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\
              \xea\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa",
    ],
];

/// A Huffman code: no symbol's code begins another's, codes of a length follow one another.
pub(super) struct Code {
    /// For the next bits, the code that they begin with.
    short: Box<[Entry; 1 << AT_ONCE]>,
    /// For the next bits, all the codes that they begin with, up to the end of a block; of first coefficients none, since
    /// another code follows each.
    runs: Box<[Run; 1 << AT_ONCE]>,
    /// For each length from 1 to 16 its first code, the number of its codes, and where their symbols begin.
    lengths: [(u32, u32, usize); 16],
    symbols: Vec<u8>,
}

/// A code.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry {
    /// Its length; 0 for one that is longer than what is looked up.
    length: u8,
    /// Its symbol.
    symbol: u8,
    /// Its length and that of the number which follows it.
    whole: u8,
    /// Coefficients of a block that it passes over: all, where it ends the block.
    passes: u8,
}

/// Codes that follow one another, with their numbers.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Their length; 0 where there are none.
    whole: u8,
    /// Coefficients that all but the last pass over: only within a block they are what they seem.
    before: u8,
    /// Coefficients that all pass over.
    passes: u8,
}

impl Entry {
    fn new(length: u32, symbol: u8, class: Class) -> Entry {
        let (zeros, size) = (symbol >> 4, symbol & 15);
        let passes = match (class, zeros, size) {
            (Class::Dc, ..) => 1,
            (Class::Ac, 15, 0) => 16,
            (Class::Ac, _, 0) => BLOCK,
            _ => zeros + 1,
        };
        Entry { length: length as u8, symbol, whole: length as u8 + size, passes }
    }
}

impl Code {
    /// The numbers of codes of each length, the symbols, and what follows them.
    pub(super) fn split(bytes: &[u8], class: Class) -> Option<(&[u8; 16], &[u8], &[u8])> {
        let (counts, rest) = bytes.split_first_chunk::<16>()?;
        let (symbols, rest) = rest.split_at_checked(counts.iter().map(|&count| usize::from(count)).sum())?;
        let mut next = 0u32;
        for (length, &count) in (1u32..).zip(counts) {
            next += u32::from(count);
            if next > 1 << length {
                return None;
            }
            next <<= 1;
        }
        let too_large = class == Class::Dc && symbols.iter().any(|&size| size > 15);
        (!too_large).then_some((counts, symbols, rest))
    }

    /// Reads the numbers of codes of each length and the symbols; what follows them.
    pub(super) fn read(bytes: &[u8], class: Class) -> Option<(Code, &[u8])> {
        let (counts, symbols, rest) = Code::split(bytes, class)?;
        let short = Box::new([Entry::default(); 1 << AT_ONCE]);
        let runs = Box::new([Run::default(); 1 << AT_ONCE]);
        let mut code = Code { short, runs, lengths: [(0, 0, 0); 16], symbols: symbols.to_vec() };
        let (mut next, mut at) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            let count = u32::from(count);
            code.lengths[length as usize - 1] = (next, count, at);
            if length <= AT_ONCE {
                let wide = AT_ONCE - length;
                let slots = code.short[(next << wide) as usize..].chunks_mut(1 << wide);
                for (slots, &symbol) in slots.zip(&symbols[at..at + count as usize]) {
                    slots.fill(Entry::new(length, symbol, class));
                }
            }
            at += count as usize;
            next = (next + count) << 1;
        }
        if class == Class::Ac {
            code.runs = Box::new(std::array::from_fn(|bits| code.run(bits)));
        }
        Some((code, rest))
    }

    /// The codes at the beginning of these bits; of the last one, its number may lie behind them.
    fn run(&self, bits: usize) -> Run {
        let mut run = Run::default();
        while u32::from(run.whole) < AT_ONCE && run.passes < BLOCK {
            let entry = self.short[bits << run.whole & ((1 << AT_ONCE) - 1)];
            if entry.length == 0 || u32::from(run.whole + entry.length) > AT_ONCE {
                break;
            }
            run = Run { whole: run.whole + entry.whole, before: run.passes, passes: run.passes + entry.passes };
        }
        run
    }

    /// The code of a symbol and its length.
    pub(super) fn of(&self, symbol: u8) -> Option<(u32, u32)> {
        let index = self.symbols.iter().position(|&known| known == symbol)?;
        let length = self.lengths.iter().position(|&(_, count, at)| (at..at + count as usize).contains(&index))?;
        let (first, _, at) = self.lengths[length];
        Some((first + (index - at) as u32, length as u32 + 1))
    }
}

/// The bits of a scan up to the next marker.
#[derive(Clone)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    window: u64,
    /// How many of them there are.
    held: u32,
    /// Bits taken so far.
    used: u64,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits { bytes, at, window: 0, held: 0, used: 0 }
    }

    /// Bits taken so far.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Where the next bits stand in the file, before any is taken.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The symbol whose code comes next; none if no code does, or if the bits end.
    pub(super) fn symbol(&mut self, code: &Code) -> Option<u8> {
        let entry = self.next(code)?;
        self.drop(entry.length.into());
        Some(entry.symbol)
    }

    /// Passes over the code that comes next and the number behind it; how many coefficients that were.
    #[inline]
    pub(super) fn pass(&mut self, code: &Code) -> Option<u32> {
        let entry = self.next(code)?;
        let whole = u32::from(entry.whole);
        (whole <= self.held).then(|| {
            self.drop(whole);
            entry.passes.into()
        })
    }

    /// Passes over all coefficients of a block but the first; whether it could.
    pub(super) fn pass_block(&mut self, code: &Code) -> bool {
        let mut at = 1;
        // Not in memory, where each code would wait for the one before it.
        let (mut window, mut held) = (self.window, self.held);
        while at < u32::from(BLOCK) {
            if held < 32 {
                self.put_back(window, held);
                self.refill();
                (window, held) = (self.window, self.held);
            }
            let run = code.runs[(window >> (64 - AT_ONCE)) as usize];
            let whole = u32::from(run.whole);
            if whole > 0 && whole <= held && at + u32::from(run.before) < u32::from(BLOCK) {
                (window, held) = (window << whole, held - whole);
                at += u32::from(run.passes);
                continue;
            }
            self.put_back(window, held);
            let Some(passed) = self.pass(code) else { return false };
            (window, held) = (self.window, self.held);
            at += passed;
        }
        self.put_back(window, held);
        true
    }

    #[inline]
    fn next(&mut self, code: &Code) -> Option<Entry> {
        self.fill();
        let entry = code.short[(self.window >> (64 - AT_ONCE)) as usize];
        let entry = if entry.length > 0 { entry } else { self.long(code)? };
        (u32::from(entry.length) <= self.held).then_some(entry)
    }

    #[cold]
    fn long(&self, code: &Code) -> Option<Entry> {
        (AT_ONCE + 1..=16).find_map(|length| {
            let (first, count, at) = code.lengths[length as usize - 1];
            let index = ((self.window >> (64 - length)) as u32).checked_sub(first).filter(|&index| index < count)?;
            // Codes of first coefficients pass one whatever it is asked for.
            Some(Entry::new(length, *code.symbols.get(at + index as usize)?, Class::Ac))
        })
    }

    /// The next `count` bits, at most 16.
    pub(super) fn take(&mut self, count: u32) -> Option<u32> {
        self.fill();
        if count > self.held {
            return None;
        }
        // In two steps, since a shift by 64 is none.
        let bits = (self.window >> 1 >> (63 - count)) as u32;
        self.drop(count);
        Some(bits)
    }

    /// Whether fewer bits are left than a code and its number may have.
    pub(super) fn exhausted(&mut self) -> bool {
        self.fill();
        self.held < 32
    }

    /// Passes over the restart marker that comes next, whatever bits are left before it; whether it does.
    pub(super) fn restart(&mut self) -> bool {
        self.at = self.next_marker();
        (self.window, self.held) = (0, 0);
        let found = matches!(self.bytes.get(self.at + 1), Some(0xd0..=0xd7));
        if found {
            self.at += 2;
        }
        found
    }

    /// Where the next marker stands, or the end of the file.
    pub(super) fn next_marker(&self) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let marker = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff));
        marker.map_or(self.bytes.len(), |position| self.at + position)
    }

    /// What is left of the bits.
    fn put_back(&mut self, window: u64, held: u32) {
        self.used += u64::from(self.held - held);
        (self.window, self.held) = (window, held);
    }

    fn drop(&mut self, count: u32) {
        self.window <<= count;
        self.held -= count;
        self.used += u64::from(count);
    }

    /// Makes at least 32 bits ready, as far as there are any: more than a code and its number have.
    #[inline]
    fn fill(&mut self) {
        if self.held < 32 {
            self.refill();
        }
    }

    /// FF in a scan is written as FF 00.
    fn refill(&mut self) {
        if let Some(&next) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let next = u64::from_be_bytes(next);
            // A byte of ones is a zero byte of the inverse.
            let zero = |word: u64| word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080 != 0;
            if !zero(!next) {
                let count = (64 - self.held) / 8;
                // Bits beyond the whole bytes are the next ones, and are written there once more later.
                self.window |= next >> self.held;
                self.held += 8 * count;
                self.at += count as usize;
                return;
            }
        }
        while self.held <= 56 {
            let (byte, length) = match self.bytes.get(self.at..) {
                Some([0xff, 0x00, ..]) => (0xff, 2),
                Some([0xff, 0xff, ..]) => {
                    self.at += 1;
                    continue;
                }
                Some([0xff, ..]) | Some([]) | None => return,
                Some([byte, ..]) => (*byte, 1),
            };
            self.window |= u64::from(byte) << (56 - self.held);
            self.held += 8;
            self.at += length;
        }
    }
}

/// Bits as a scan has them.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    /// The last bits, at the bottom.
    window: u64,
    held: u32,
}

impl Writer {
    /// Adds the lowest `count` bits, at most 16.
    pub(super) fn put(&mut self, bits: u32, count: u32) {
        self.window = self.window << count | u64::from(bits);
        self.held += count;
        while self.held >= 8 {
            self.held -= 8;
            let byte = (self.window >> self.held) as u8;
            self.bytes.push(byte);
            if byte == 0xff {
                self.bytes.push(0);
            }
        }
    }

    /// All bytes; the last one is filled with ones.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let rest = (8 - self.held) % 8;
        self.put((1 << rest) - 1, rest);
        self.bytes
    }
}
