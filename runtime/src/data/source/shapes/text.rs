//! The words about a scene: true captions, web-like raw texts, zero-shot prompts, and the closed list of all of them.
//!
//! Every word comes from a table in this file or from a name in [`super::describe`], so that [`vocabulary`] is complete. A
//! caption tells the whole [`Description`]: equal captions mean equal descriptions.

use super::describe::{Background, Colour, Description, Ground, Kind, Layout, Object, Pattern, Shape, Size};
use super::draws::Draws;
use crate::data::split_words;
use std::collections::BTreeSet;

/// A context length that holds every text of this data set as one token per word, with a start and an end token.
pub const CONTEXT: usize = 32;

const OPENINGS: &[&str] = &["", "", "a photo of", "a picture of", "an image of", "this shows"];
const GROUNDS: &[&str] = &[
    "on a {pattern} {ground} background",
    "in front of a {pattern} {ground} background",
    "with a {pattern} {ground} background",
];

/// Wordings of a layout with {a}, {b}, {c} for the objects; all wordings of a layout mean the same.
fn layout_wordings(layout: Layout) -> &'static [&'static str] {
    match layout {
        Layout::Alone => &["{a}"],
        Layout::LeftOf => &["{a} to the left of {b}", "{b} to the right of {a}", "{a} left of {b}", "{b} right of {a}"],
        Layout::Above => &["{a} above {b}", "{b} below {a}", "{a} over {b}", "{b} under {a}"],
        Layout::RowAbove => &["{a} to the left of {b}, both above {c}", "{a} left of {b}, and {c} below them"],
        Layout::RowBelow => &["{a} to the left of {b}, both below {c}", "{a} left of {b}, and {c} above them"],
        Layout::ColumnLeft => &["{a} above {b}, both to the left of {c}", "{a} over {b}, and {c} to the right of them"],
        Layout::ColumnRight => {
            &["{a} above {b}, both to the right of {c}", "{a} over {b}, and {c} to the left of them"]
        }
    }
}

const ALL_LAYOUTS: [Layout; 7] = [
    Layout::Alone,
    Layout::LeftOf,
    Layout::Above,
    Layout::RowAbove,
    Layout::RowBelow,
    Layout::ColumnLeft,
    Layout::ColumnRight,
];

/// A true caption: the whole description, in one of several wordings.
pub(super) fn caption(description: &Description, draws: &mut Draws) -> String {
    let mut text = draws.pick(layout_wordings(description.layout)).to_string();
    for (slot, object) in ["{a}", "{b}", "{c}"].iter().zip(&description.objects) {
        let Kind { shape, colour } = object.kind;
        text = text.replace(slot, &format!("a {} {} {}", object.size.word(), colour.word(), shape.word()));
    }
    let ground = draws
        .pick(GROUNDS)
        .replace("{pattern}", description.background.pattern.word())
        .replace("{ground}", description.background.ground.word());
    [draws.pick(OPENINGS), &text, &ground].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" ")
}

/// What web pages put around the words that matter; {x} stands for those, {n} for a number.
const WEB_FRAMES: &[&str] = &[
    "{x}",
    "{x}",
    "IMG_{n}.JPG {x}",
    "DSC{n} {x}",
    "{x} {n}.png",
    "{x} - best price",
    "buy {x} free shipping",
    "{x} for sale!! only ${n}",
    "hot deal: {x}",
    "NEW {x} {n}",
    "{x} clipart",
    "{x} | stock photo",
    "{x} vector download",
    "{x} #art #design",
    "my {x} lol",
    "{x} by admin",
    "look at this {x}",
    "untitled ({x})",
    "click here for {x}",
    "page {n}: {x} - my blog",
];
const JOINERS: &[&str] = &["and", "&", "+", ",", "with", "/", "also"];
const RELATIONS: &[(Layout, &[&str])] =
    &[(Layout::LeftOf, &["left of", "next to", "beside"]), (Layout::Above, &["above", "over", "on top of"])];
const PRAISE: &[&str] = &["nice", "cute", "cool", "cheap", "vintage", "best"];
const ENDINGS: &[&str] = &["", "", "", "!!", "...", " :)", " wow", " ?"];

/// A web-like text about a scene: noisy wording, other names, attributes and objects left out, nothing false.
pub(super) fn raw_text(description: &Description, draws: &mut Draws) -> String {
    let mut spoken = String::new();
    for (rank, object) in description.objects.iter().enumerate() {
        if rank > 0 {
            if draws.chance(0.2) {
                break;
            }
            let relations = RELATIONS.iter().find(|(layout, _)| *layout == description.layout);
            let joiner = match relations {
                Some((_, words)) if draws.chance(0.3) => draws.pick(words),
                _ => draws.pick(JOINERS),
            };
            spoken.push_str(if joiner == "," { "" } else { " " });
            spoken.push_str(joiner);
            spoken.push(' ');
        }
        spoken.push_str(&raw_object(object, draws));
    }
    if draws.chance(0.25) {
        spoken.push_str(&raw_background(description.background, draws));
    }
    let number = (1000 + draws.below(9000)).to_string();
    let text = draws.pick(WEB_FRAMES).replace("{x}", &spoken).replace("{n}", &number) + draws.pick(ENDINGS);
    match draws.below(5) {
        0 => text.to_uppercase(),
        1 => title_case(&text),
        _ => text,
    }
}

fn raw_object(object: &Object, draws: &mut Draws) -> String {
    let mut words = Vec::with_capacity(4);
    if draws.chance(0.15) {
        words.push(draws.pick(PRAISE));
    }
    if draws.chance(0.4) {
        words.push(spoken_name(object.size.word(), object.size.synonyms(), draws));
    }
    let (with_colour, with_shape) = match draws.below(20) {
        0 | 1 => (false, true),
        2 => (true, false),
        _ => (true, true),
    };
    let Kind { shape, colour } = object.kind;
    if with_colour {
        words.push(spoken_name(colour.word(), colour.synonyms(), draws));
    }
    words.push(if with_shape { spoken_name(shape.word(), shape.synonyms(), draws) } else { THING });
    words.join(" ")
}

const THING: &str = "thing";

fn raw_background(background: Background, draws: &mut Draws) -> String {
    let pattern = spoken_name(background.pattern.word(), background.pattern.synonyms(), draws);
    let ground = spoken_name(background.ground.word(), background.ground.synonyms(), draws);
    match draws.below(3) {
        0 => format!(", {ground} bg"),
        1 => format!(" on {ground} {pattern}"),
        _ => format!(" {pattern} backdrop"),
    }
}

/// The plain name, or one time in three another one.
fn spoken_name(word: &'static str, synonyms: &'static [&'static str], draws: &mut Draws) -> &'static str {
    if draws.below(3) == 0 { draws.pick(synonyms) } else { word }
}

fn title_case(text: &str) -> String {
    let mut starts = true;
    text.chars()
        .map(|c| {
            let shown = if starts { c.to_ascii_uppercase() } else { c };
            starts = !c.is_ascii_alphanumeric();
            shown
        })
        .collect()
}

/// Prompts for zero-shot classification; {class} stands for the colour and the shape. Sizes and backgrounds vary, since the
/// mean over prompts is to stand for the class and nothing else.
const PROMPTS: &[&str] = &[
    "{class}",
    "a photo of {a} {class}",
    "a picture of {a} {class}",
    "a small {class} on a plain white background",
    "a medium {class} on a shaded grey background",
    "a large {class} on a striped black background",
    "a medium {class} in front of a checkered brown background",
    "a photo of a large {class} with a plain navy background",
    "a picture of a small {class} with a shaded brown background",
    "an image of a medium {class} in front of a striped white background",
];

/// The zero-shot prompts of a class.
pub fn prompts(kind: Kind) -> Vec<String> {
    let class = format!("{} {}", kind.colour.word(), kind.shape.word());
    let article = if class.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    PROMPTS.iter().map(|prompt| prompt.replace("{class}", &class).replace("{a}", article)).collect()
}

/// Every word that a text of this data set can hold ([`split_words`]), sorted, each once.
pub fn vocabulary() -> Vec<String> {
    let mut names: Vec<&str> = vec![THING, "an", "bg", "on", "backdrop", "0 1 2 3 4 5 6 7 8 9"];
    macro_rules! add_names {
        ($($name:ident)*) => { $(for member in $name::ALL {
            names.push(member.word());
            names.extend(member.synonyms());
        })* };
    }
    add_names!(Shape Colour Size Pattern Ground);
    for wordings in [OPENINGS, GROUNDS, WEB_FRAMES, JOINERS, PRAISE, ENDINGS, PROMPTS] {
        names.extend(wordings);
    }
    names.extend(ALL_LAYOUTS.iter().copied().flat_map(layout_wordings));
    names.extend(RELATIONS.iter().flat_map(|(_, words)| *words));
    let unfilled = |name: &&str| {
        ["{pattern}", "{ground}", "{class}", "{a}", "{b}", "{c}", "{x}", "{n}"]
            .iter()
            .fold((*name).to_string(), |text, slot| text.replace(slot, " "))
    };
    let sorted: BTreeSet<String> =
        names.iter().map(unfilled).flat_map(|name| split_words(&name)).chain(["a".to_string()]).collect();
    sorted.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn vocabulary_is_sorted_unique_and_free_of_slots() {
        let all = vocabulary();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(
            ["circle", "a", "an", "0", "img", "left", "background", "crimson"]
                .iter()
                .all(|w| all.contains(&w.to_string()))
        );
        assert!(!["x", "n", "b", "c", "class", "pattern", "ground"].iter().any(|w| all.contains(&w.to_string())));
    }

    #[test]
    fn no_name_means_two_things() {
        let mut meanings: BTreeMap<&str, &str> = BTreeMap::new();
        let mut claim = |name: &'static str, meaning: &'static str| {
            assert_eq!(meanings.insert(name, meaning).unwrap_or(meaning), meaning, "{name}");
        };
        macro_rules! claim_all {
            ($($name:ident)*) => { $(for member in $name::ALL {
                claim(member.word(), member.word());
                member.synonyms().iter().for_each(|synonym| claim(synonym, member.word()));
            })* };
        }
        claim_all!(Shape Colour Size Pattern Ground);
    }

    #[test]
    fn prompts_name_their_class() {
        let orange = Kind { shape: Shape::Star, colour: Colour::Orange };
        assert_eq!(prompts(orange)[1], "a photo of an orange star");
        assert!(prompts(orange).iter().all(|prompt| prompt.contains("orange star")));
    }
}
