//! What the data set promises, over thousands of its samples.

use super::*;
use crate::data::{Field, SampleSource, Texts, split_words};
use std::collections::{BTreeSet, HashMap, HashSet};

fn scenes(split: Split) -> Scenes {
    Scenes::new(1, split, split.default_len()).unwrap()
}

#[test]
fn held_out_descriptions_and_captions_are_distinct_and_never_trained_on() {
    let train: HashSet<_> = (0..40_000).map(|index| scenes(Split::Train).description(index)).collect();
    for split in [Split::HeldOut, Split::ZeroShot] {
        let scenes = Scenes::new(1, split, split.max_len().unwrap()).unwrap();
        assert!(scenes.len() >= 512);
        let descriptions: HashSet<_> = (0..scenes.len()).map(|index| scenes.description(index)).collect();
        assert_eq!(descriptions.len() as u64, scenes.len());
        assert_eq!(descriptions.intersection(&train).count(), 0);
        let captions: HashSet<_> = (0..scenes.len()).map(|index| scenes.caption(index)).collect();
        assert_eq!(captions.len() as u64, scenes.len());
    }
}

#[test]
fn one_caption_never_fits_two_descriptions() {
    let scenes = scenes(Split::Train);
    let mut told: HashMap<String, Description> = HashMap::new();
    for index in 0..20_000 {
        let described = scenes.description(index);
        let before = told.insert(scenes.caption(index), described.clone());
        assert_eq!(before.unwrap_or(described.clone()), described, "index {index}");
    }
}

#[test]
fn too_many_scenes_are_an_error_that_says_how_many_there_are() {
    let error = Scenes::new(1, Split::HeldOut, 5000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the shapes data set has 3456 distinct held-out scenes, but 5000 were asked for; ask for at most 3456"
    );
}

#[test]
fn samples_depend_on_seed_split_and_index_only() {
    let sample = |seed, split, index| {
        let scenes = Scenes::new(seed, split, 100).unwrap();
        (scenes.scene(index).render(32).pixels, scenes.caption(index), scenes.raw_text(index))
    };
    let one = sample(1, Split::Train, 7);
    assert_eq!(one, sample(1, Split::Train, 7));
    for other in [sample(2, Split::Train, 7), sample(1, Split::HeldOut, 7), sample(1, Split::Train, 8)] {
        assert_ne!(one.0, other.0);
        assert_ne!(one.1, other.1);
    }
}

#[test]
fn raw_texts_are_wrong_in_the_stated_share_and_then_about_other_kinds() {
    for split in [Split::Train, Split::HeldOut] {
        let scenes = Scenes::new(3, split, 1500).unwrap();
        let mut wrong = 0;
        for index in 0..scenes.len() {
            let raw = scenes.raw_text(index);
            assert_eq!(raw.is_wrong, raw.about != index);
            if raw.is_wrong {
                wrong += 1;
                let kinds = |at| scenes.description(at).objects.iter().map(|o| o.kind).collect::<HashSet<_>>();
                assert!(kinds(index).is_disjoint(&kinds(raw.about)));
            }
        }
        // Binomial with 1500 and 0.3: mean 450, standard deviation 17.7; five of them.
        assert!((361..=539).contains(&wrong), "{wrong} of 1500");
    }
    let alone = Scenes::new(3, Split::HeldOut, 1).unwrap();
    assert!(!alone.raw_text(0).is_wrong, "a single scene has no other to describe");
}

#[test]
fn every_text_is_made_of_the_vocabulary_and_fits_the_context() {
    let known: BTreeSet<String> = vocabulary().into_iter().collect();
    let check = |text: &str| {
        let words = split_words(text);
        assert!(!words.is_empty() && words.len() <= CONTEXT - 2, "{} words: {text}", words.len());
        assert_eq!(words.iter().find(|word| !known.contains(*word)), None, "{text}");
    };
    let scenes = scenes(Split::Train);
    for index in 0..20_000 {
        check(&scenes.caption(index));
        check(&scenes.raw_text(index).text);
    }
    (0..Kind::COUNT).flat_map(|class| prompts(Kind::from_class(class))).for_each(|prompt| check(&prompt));
}

#[test]
fn objects_lie_inside_the_picture_as_the_layout_says() {
    let scenes = scenes(Split::Train);
    for index in 0..5_000 {
        let scene = scenes.scene(index);
        let places = &scene.placements;
        for (rank, a) in places.iter().enumerate() {
            assert!([a.x, a.y].iter().all(|&centre| centre >= 0.99 * a.radius && centre <= 1.0 - 0.99 * a.radius));
            for b in &places[..rank] {
                let apart = (a.x - b.x).abs().max((a.y - b.y).abs());
                assert!(apart >= 0.99 * (a.radius + b.radius), "index {index}: objects overlap");
            }
        }
        let left = |a: usize, b: usize| places[a].x < places[b].x;
        let above = |a: usize, b: usize| places[a].y < places[b].y;
        assert!(match scene.description.layout {
            Layout::Alone => places.len() == 1,
            Layout::LeftOf => left(0, 1),
            Layout::Above => above(0, 1),
            Layout::RowAbove => left(0, 1) && above(0, 2) && above(1, 2),
            Layout::RowBelow => left(0, 1) && above(2, 0) && above(2, 1),
            Layout::ColumnLeft => above(0, 1) && left(0, 2) && left(1, 2),
            Layout::ColumnRight => above(0, 1) && left(2, 0) && left(2, 1),
        });
    }
}

/// An object shows: the pixel at the centre of a solid shape is nearer to its colour than to any other of the same split.
#[test]
fn pictures_show_their_objects_at_every_size() {
    let scenes = scenes(Split::ZeroShot);
    for side in [32, 48, 64] {
        let mut by_colour: HashMap<Colour, (f64, [f64; 3])> = HashMap::new();
        for index in 0..scenes.len() {
            let scene = scenes.scene(index);
            let image = scene.render(side);
            assert_eq!((image.width, image.height, image.pixels.len()), (side, side, (side * side * 3) as usize));
            let Kind { shape, colour } = scene.description.objects[0].kind;
            if matches!(shape, Shape::Ring | Shape::Crescent) {
                continue;
            }
            let at = |centre: f32| ((centre * side as f32) as usize).min(side as usize - 1);
            let start = at(scene.placements[0].y) * image.stride() + at(scene.placements[0].x) * 3;
            let pixel = &image.pixels[start..start + 3];
            let (count, sum) = by_colour.entry(colour).or_default();
            *count += 1.0;
            (0..3).for_each(|c| sum[c] += f64::from(pixel[c]));
        }
        let mean = |colour| by_colour[&colour].1.map(|sum| sum / by_colour[&colour].0);
        assert!(mean(Colour::Red)[0] > 2.0 * mean(Colour::Red)[2]);
        assert!(mean(Colour::Blue)[2] > 2.0 * mean(Colour::Blue)[0]);
        assert!(mean(Colour::Yellow)[1] > 3.0 * mean(Colour::Yellow)[2]);
        // The farthest channel tells any two colours apart by more than the jitter of a mean.
        for (rank, &a) in Colour::ALL.iter().enumerate() {
            for &b in &Colour::ALL[..rank] {
                let apart = (0..3).map(|c| (mean(a)[c] - mean(b)[c]).abs()).fold(0.0, f64::max);
                assert!(apart > 40.0, "{a:?} and {b:?} at {side}: {apart}");
            }
        }
    }
}

#[test]
fn the_source_gives_what_the_pipeline_promises() {
    let promised = alip_plan::pipeline::Source::Shapes { size: 48, scenes: 100, held_out: 600, seed: 5 };
    let source = ShapesSource::new(Scenes::new(5, Split::HeldOut, 600).unwrap(), 48);
    let sample = source.sample(17).unwrap();
    assert_eq!(sample.fields.keys().collect::<Vec<_>>(), promised.fields().keys().collect::<Vec<_>>());
    assert_eq!(sample.labels.keys().collect::<Vec<_>>(), ["class", "objects", "raw_about", "raw_wrong"]);
    assert_eq!(source.captions(17).unwrap(), [source.scenes().caption(17)]);
    assert!(matches!(&sample.fields["image"], Field::Rgb(image) if image.width == 48));
    assert_eq!(source.words(1000).unwrap(), vocabulary());
    let reads_past_the_end = source.sample(600).unwrap_err();
    assert_eq!(reads_past_the_end.to_string(), "there is no scene 600, only 600 of them, counted from 0");
}
