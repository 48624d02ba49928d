//! What the page holds: structure, not bytes.

use super::*;
use crate::data::shapes::{Scenes, Split};

fn measure(name: &str, value: f64, chance: f64, other: f64, unit: Unit) -> Measure {
    Measure { name: name.into(), value, chance, other: Some(other), count: 1024, unit }
}

fn series(name: &str, value: impl Fn(f64) -> f64) -> Series {
    Series { name: name.into(), points: (0..700).map(|step| (f64::from(step), value(f64::from(step)))).collect() }
}

/// A report with every part, from made-up numbers and real scenes.
fn made_up() -> Report {
    let scenes = Scenes::new(1, Split::HeldOut, 1024).unwrap();
    let sample = |index: u64| {
        let raw = scenes.raw_text(index);
        Sample {
            picture: scenes.scene(index).render(32).into(),
            caption: scenes.caption(index),
            raw_is_wrong: raw.is_wrong,
            raw: raw.text,
            weight: Some(if raw.is_wrong { 0.31 } else { 0.97 }),
            found: (0..3)
                .map(|rank| Found { text: scenes.caption(index + rank), is_right: rank == index % 2 })
                .collect(),
        }
    };
    let spread = |from: f32, by: f32, n: i32| (0..n).map(|i| (from + by * (i as f32 / n as f32)).min(1.0)).collect();
    Report {
        title: "alip_shapes".into(),
        summary: "A small ALIP trained on rendered scenes <made-up numbers> & noisy texts.".into(),
        facts: [
            ("graph", "alip_shapes"),
            ("parameters", "893,185"),
            ("device", "cpu, 2 threads"),
            ("steps", "700"),
            ("batch", "128"),
            ("samples/s", "312"),
            ("wall time", "4 min 47 s"),
            ("seed", "1"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into(),
        measures: vec![
            measure("image to text R@1", 0.52, 1.0 / 1024.0, 0.31, Unit::Share),
            measure("image to text R@5", 0.91, 5.0 / 1024.0, 0.90, Unit::Share),
            measure("text to image R@1", 0.50, 1.0 / 1024.0, 0.56, Unit::Share),
            measure("zero-shot (72 classes)", 0.47, 1.0 / 72.0, 0.40, Unit::Share),
            Measure { other: None, ..measure("weight AUC", 0.91, 0.5, 0.0, Unit::Area) },
        ],
        other: Some(Other {
            name: "clip_shapes".into(),
            summary: "Plain CLIP on the raw texts of the same samples.".into(),
        }),
        charts: vec![
            Chart {
                title: "Loss".into(),
                series: vec![series("loss", |s| 9.0 / (1.0 + s / 60.0) + 0.3 * (s * 0.7).sin())],
            },
            Chart {
                title: "Gate means".into(),
                series: vec![
                    series("text", |s| 0.2 + s / 1500.0),
                    series("raw", |s| 0.3 - s / 4000.0),
                    series("caption", |s| 0.8 - 0.5 / (1.0 + s / 50.0)),
                ],
            },
        ],
        weights: Some(Weights { right: spread(0.6, 0.9, 700), wrong: spread(0.05, 0.9, 300) }),
        samples: (0..6).map(sample).collect(),
        notes: vec!["Repeat with: alip-run train alip_shapes --seed 1".into()],
    }
}

#[test]
fn the_page_stands_alone_and_has_every_part() {
    let page = render(&made_up());
    if let Ok(path) = std::env::var("ALIP_SAMPLE_REPORT") {
        write(&made_up(), Path::new(&path)).unwrap();
    }
    let count = |what: &str| page.matches(what).count();
    for heading in ["<h1>alip_shapes</h1>", "<h2>Results</h2>", "<h2>Training</h2>", "<h2>Samples</h2>"] {
        assert_eq!(count(heading), 1, "{heading}");
    }
    assert_eq!(count("<tr><td>"), 5);
    assert_eq!(count("<figure"), 3);
    assert_eq!(count("src=\"data:image/png;base64,"), 6);
    assert_eq!(count("<svg "), count("</svg>"));
    assert_eq!(count("<path d=\"M"), 4);
    assert!(page.contains("<td>0.10\u{202f}%</td><td>532×</td>"), "chance and its multiple");
    for outside in ["http:", "https:", "<script", "<link", "url(", "@import"] {
        assert_eq!(count(outside), 0, "{outside}");
    }
    // Without the pictures, whose base64 may spell anything.
    assert!(!render(&Report { samples: vec![], ..made_up() }).contains("NaN"));
}

#[test]
fn the_empty_report_is_a_page() {
    let page = render(&Report::default());
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    assert_eq!(page.matches("<h2>").count(), 0);
}

#[test]
fn all_text_is_escaped() {
    const EVIL: &str = "<b onload='x'>&\"";
    let evil = || EVIL.to_string();
    let base = made_up();
    let sample = Sample {
        raw: evil(),
        caption: evil(),
        found: vec![Found { text: evil(), is_right: true }],
        ..base.samples[0].clone()
    };
    let page = render(&Report {
        title: evil(),
        summary: evil(),
        facts: vec![(evil(), evil())],
        measures: vec![measure(EVIL, 0.5, 0.1, 0.2, Unit::Share)],
        other: Some(Other { name: evil(), summary: evil() }),
        charts: vec![Chart { title: evil(), series: vec![series(EVIL, |s| s), series(EVIL, |s| s)] }],
        samples: vec![sample],
        notes: vec![evil()],
        ..base
    });
    assert!(!page.contains("<b onload") && !page.contains("onload='"));
    // Title twice, summary, fact twice, measure, verdict twice (other and measure), other twice, chart title twice, legend
    // twice, caption twice (alt and text), raw, found, note.
    assert_eq!(page.matches("&lt;b onload=&#39;x&#39;&gt;&amp;&quot;").count(), 19);
}

#[test]
fn the_comparison_says_the_same_whichever_run_is_ahead() {
    let measures = made_up().measures;
    assert_eq!(
        page::verdict(&measures, "clip_shapes"),
        "Against clip_shapes: this run is ahead on image to text R@1, zero-shot (72 classes); behind on text to image R@1; \
         no clear difference on image to text R@5 (a difference counts from two standard errors)."
    );
    let swapped: Vec<Measure> = measures
        .into_iter()
        .filter_map(|m| m.other.map(|other| Measure { value: other, other: Some(m.value), ..m }))
        .collect();
    assert!(
        page::verdict(&swapped, "alip").starts_with("Against alip: this run is ahead on text to image R@1; behind on")
    );
    assert_eq!(page::verdict(&[], "alip"), "No measure of alip is there to compare.");
}

#[test]
fn numbers_that_are_not_finite_do_not_break_the_page() {
    let nan = || f64::NAN;
    let page = render(&Report {
        measures: vec![measure("R@1", nan(), 0.1, nan(), Unit::Share)],
        charts: vec![Chart { title: "loss".into(), series: vec![series("loss", |_| f64::NAN)] }],
        weights: Some(Weights { right: vec![f32::NAN], wrong: vec![0.5] }),
        samples: vec![],
        ..made_up()
    });
    assert!(page.contains("No finite values.") && page.contains("There are not both right and wrong"));
    assert!(!page.contains("NaN"));
}

#[test]
fn a_picture_of_the_wrong_size_is_said_and_does_not_panic() {
    let mut report = made_up();
    report.samples[0].picture.pixels.pop();
    assert!(render(&report).contains("its size does not fit its pixels"));
}

#[test]
fn reports_survive_serde_and_are_written_whole() {
    // Halves and quarters, which JSON keeps exactly.
    let charts = vec![Chart { title: "loss".into(), series: vec![series("loss", |step| step / 4.0)] }];
    let report = Report { charts, ..made_up() };
    let text = serde_json::to_string(&report).unwrap();
    assert!(serde_json::from_str::<Report>(&text).unwrap() == report);

    let folder = std::env::temp_dir().join(format!("alip-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("report.html");
    write(&report, &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), render(&report));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left beside it");
    std::fs::remove_dir_all(&folder).unwrap();

    let error = write(&report, &path).unwrap_err().to_string();
    assert!(error.contains("report.html") && error.contains("choose another place"), "{error}");
}
