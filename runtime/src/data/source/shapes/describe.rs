//! What a scene shows, as a caption says it, and the numbering of all such descriptions.
//!
//! A [`Description`] is canonical: two descriptions are equal exactly when one caption fits both. "A left of B" has no twin
//! "B right of A" (a caption may word it either way), and the objects of a scene differ in shape or colour, so that "the red
//! circle" is one object. Descriptions with the same number of objects are numbered 0..[`count`] by mixed radix.

/// An enumeration whose members have a name, and other names that people on the web use.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$member_doc:meta])* $member:ident $word:literal [$($synonym:literal),*],)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $(#[doc = $word] $member,)* }

        impl $name {
            /// All members, in order.
            pub const ALL: &'static [$name] = &[$($name::$member),*];

            /// The plain name, which captions use.
            pub fn word(self) -> &'static str {
                match self { $($name::$member => $word,)* }
            }

            /// Other names, which only raw texts use.
            pub fn synonyms(self) -> &'static [&'static str] {
                match self { $($name::$member => &[$($synonym),*],)* }
            }
        }
    };
}

named! {
    /// The shape of an object.
    Shape {
        Circle "circle" ["disc", "dot", "ball"],
        Square "square" ["box", "block"],
        Triangle "triangle" ["wedge", "pyramid"],
        Diamond "diamond" ["rhombus", "lozenge"],
        Star "star" ["pentagram", "starlet"],
        Cross "cross" ["plus"],
        Ring "ring" ["hoop", "donut"],
        Heart "heart" ["valentine"],
        Crescent "crescent" ["moon"],
    }
}

named! {
    /// The colour of an object.
    Colour {
        Red "red" ["crimson", "scarlet"],
        Orange "orange" ["tangerine", "amber"],
        Yellow "yellow" ["lemon", "golden"],
        Green "green" ["emerald", "leafy"],
        Cyan "cyan" ["aqua", "turquoise"],
        Blue "blue" ["cobalt", "azure"],
        Purple "purple" ["violet", "plum"],
        Pink "pink" ["rosy", "bubblegum"],
    }
}

named! {
    /// The size of an object.
    Size {
        Small "small" ["tiny", "mini", "little"],
        Medium "medium" ["mid", "regular"],
        Large "large" ["big", "huge", "giant"],
    }
}

named! {
    /// How a background is filled.
    Pattern {
        Plain "plain" ["solid"],
        Shaded "shaded" ["gradient"],
        Striped "striped" ["stripes"],
        Checkered "checkered" ["checks"],
    }
}

named! {
    /// The main colour of a background; none of them is a colour of objects.
    Ground {
        White "white" ["ivory"],
        Grey "grey" ["gray"],
        Black "black" ["dark"],
        Brown "brown" ["wooden"],
        Navy "navy" ["midnight"],
    }
}

/// Shape and colour of an object: the classes of zero-shot classification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// Its shape.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = Shape::ALL.len() * Colour::ALL.len();

    /// The kind of a class number, which counts colours first (taken modulo [`Kind::COUNT`]).
    pub fn from_class(class: usize) -> Kind {
        let colours = Colour::ALL.len();
        Kind { shape: Shape::ALL[class / colours % Shape::ALL.len()], colour: Colour::ALL[class % colours] }
    }

    /// The class number, below [`Kind::COUNT`].
    pub fn class(self) -> usize {
        self.shape as usize * Colour::ALL.len() + self.colour as usize
    }
}

/// One object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Object {
    /// Shape and colour.
    pub kind: Kind,
    /// Size, which means the same radius in every scene.
    pub size: Size,
}

/// Where the objects a, b, c of a scene lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// a alone.
    Alone,
    /// a to the left of b.
    LeftOf,
    /// a above b.
    Above,
    /// a to the left of b, both above c.
    RowAbove,
    /// a to the left of b, both below c.
    RowBelow,
    /// a above b, both to the left of c.
    ColumnLeft,
    /// a above b, both to the right of c.
    ColumnRight,
}

/// The background of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Background {
    /// How it is filled.
    pub pattern: Pattern,
    /// Its main colour.
    pub ground: Ground,
}

/// Everything a caption tells of a scene.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Description {
    /// One to three objects of distinct kinds, in the order in which `layout` speaks of them.
    pub objects: Vec<Object>,
    /// Where they lie.
    pub layout: Layout,
    /// What they lie on.
    pub background: Background,
}

/// The most objects in a scene.
pub const MAX_OBJECTS: usize = 3;

fn layouts(objects: usize) -> &'static [Layout] {
    match objects {
        1 => &[Layout::Alone],
        2 => &[Layout::LeftOf, Layout::Above],
        _ => &[Layout::RowAbove, Layout::RowBelow, Layout::ColumnLeft, Layout::ColumnRight],
    }
}

/// The number of descriptions with `objects` objects (1 to [`MAX_OBJECTS`]).
pub(super) fn count(objects: usize) -> u64 {
    let kinds: usize = (0..objects).map(|taken| Kind::COUNT - taken).product();
    let sizes = Size::ALL.len().pow(objects as u32);
    (kinds * sizes * layouts(objects).len() * Pattern::ALL.len() * Ground::ALL.len()) as u64
}

/// Description number `number` of those with `objects` objects (taken modulo [`count`]); distinct numbers below `count` give
/// distinct descriptions.
pub(super) fn description(objects: usize, number: u64) -> Description {
    let mut rest = number;
    let mut digit = |radix: usize| {
        let digit = rest % radix as u64;
        rest /= radix as u64;
        digit as usize
    };
    let background =
        Background { pattern: Pattern::ALL[digit(Pattern::ALL.len())], ground: Ground::ALL[digit(Ground::ALL.len())] };
    let layout = layouts(objects)[digit(layouts(objects).len())];
    // A kind is written as its rank among those not yet taken, so that every number gives distinct kinds.
    let mut taken: Vec<usize> = Vec::with_capacity(objects);
    let objects = (0..objects)
        .map(|before| {
            let mut class = digit(Kind::COUNT - before);
            let mut sorted = taken.clone();
            sorted.sort_unstable();
            for other in sorted {
                class += usize::from(class >= other);
            }
            taken.push(class);
            Object { kind: Kind::from_class(class), size: Size::ALL[digit(Size::ALL.len())] }
        })
        .collect();
    Description { objects, layout, background }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_and_descriptions_of_one_object_are_one_to_one() {
        let all: HashSet<_> = (0..count(1)).map(|number| description(1, number)).collect();
        assert_eq!(count(1), 9 * 8 * 3 * 4 * 5);
        assert_eq!(all.len() as u64, count(1));
    }

    #[test]
    fn numbers_of_several_objects_give_distinct_descriptions_of_distinct_kinds() {
        for objects in [2, 3] {
            // A stride that is coprime to every radix visits all digits.
            let numbers = (0..20_000u64).map(|i| i * 10_007 % count(objects)).collect::<HashSet<_>>();
            let all: HashSet<_> = numbers.iter().map(|&number| description(objects, number)).collect();
            assert_eq!(all.len(), numbers.len());
            for described in all {
                let kinds: HashSet<_> = described.objects.iter().map(|object| object.kind).collect();
                assert_eq!(kinds.len(), objects);
            }
        }
    }

    #[test]
    fn classes_count_the_kinds() {
        let kinds: HashSet<_> = (0..Kind::COUNT).map(Kind::from_class).collect();
        assert_eq!(kinds.len(), Kind::COUNT);
        assert!((0..Kind::COUNT).all(|class| Kind::from_class(class).class() == class));
    }
}
