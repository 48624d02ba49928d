//! The names and shapes of all weights of a CLIP of given sizes.

use super::shapes::{Shapes, Stack, Vision};

/// Names and shapes.
type Layout = Vec<(String, Vec<u64>)>;

impl Shapes {
    /// Names and shapes of all weights of a CLIP of these sizes, running statistics among them, but no counters.
    pub fn layout(&self) -> Vec<(String, Vec<u64>)> {
        let text = self.text.width;
        let mut all: Layout = vec![
            ("logit_scale".into(), vec![]),
            ("positional_embedding".into(), vec![self.context, text]),
            ("text_projection".into(), vec![text, self.embed]),
            ("token_embedding.weight".into(), vec![self.vocabulary, text]),
        ];
        norm(&mut all, "ln_final", text);
        blocks(&mut all, "transformer", &self.text);
        match &self.vision {
            Vision::Vit { image, patch, stack } => self.vit(&mut all, *image, *patch, stack),
            Vision::Resnet { image, width, blocks } => self.resnet(&mut all, *image, *width, blocks),
        }
        all
    }

    fn vit(&self, all: &mut Layout, image: u64, patch: u64, stack: &Stack) {
        let (width, side) = (stack.width, image.checked_div(patch).unwrap_or(0));
        all.push(("visual.class_embedding".into(), vec![width]));
        all.push(("visual.conv1.weight".into(), vec![width, 3, patch, patch]));
        all.push(("visual.positional_embedding".into(), vec![side.saturating_mul(side).saturating_add(1), width]));
        all.push(("visual.proj".into(), vec![width, self.embed]));
        norm(all, "visual.ln_pre", width);
        norm(all, "visual.ln_post", width);
        blocks(all, "visual.transformer", stack);
    }

    fn resnet(&self, all: &mut Layout, image: u64, width: u64, stages: &[u64; 4]) {
        for (number, (inner, outer)) in
            [(3, width / 2), (width / 2, width / 2), (width / 2, width)].into_iter().enumerate()
        {
            conv(all, &format!("visual.conv{}", number + 1), [outer, inner, 3]);
            batch_norm(all, &format!("visual.bn{}", number + 1), outer);
        }
        let mut inner = width;
        for (stage, &count) in stages.iter().enumerate() {
            let planes = width.saturating_mul(1 << stage);
            let outer = planes.saturating_mul(4);
            for block in 0..count {
                let path = format!("visual.layer{}.{block}", stage + 1);
                conv(all, &format!("{path}.conv1"), [planes, inner, 1]);
                conv(all, &format!("{path}.conv2"), [planes, planes, 3]);
                conv(all, &format!("{path}.conv3"), [outer, planes, 1]);
                [planes, planes, outer]
                    .into_iter()
                    .enumerate()
                    .for_each(|(number, channels)| batch_norm(all, &format!("{path}.bn{}", number + 1), channels));
                if stage > 0 && block == 0 || inner != outer {
                    conv(all, &format!("{path}.downsample.0"), [outer, inner, 1]);
                    batch_norm(all, &format!("{path}.downsample.1"), outer);
                }
                inner = outer;
            }
        }
        let (attention, side) = (width.saturating_mul(32), image / 32);
        all.push((
            "visual.attnpool.positional_embedding".into(),
            vec![side.saturating_mul(side).saturating_add(1), attention],
        ));
        for (name, out) in [("k", attention), ("q", attention), ("v", attention), ("c", self.embed)] {
            linear(all, &format!("visual.attnpool.{name}_proj"), attention, out);
        }
    }
}

fn norm(all: &mut Layout, path: &str, width: u64) {
    all.push((format!("{path}.weight"), vec![width]));
    all.push((format!("{path}.bias"), vec![width]));
}

fn batch_norm(all: &mut Layout, path: &str, channels: u64) {
    norm(all, path, channels);
    all.push((format!("{path}.running_mean"), vec![channels]));
    all.push((format!("{path}.running_var"), vec![channels]));
}

fn linear(all: &mut Layout, path: &str, from: u64, to: u64) {
    all.push((format!("{path}.weight"), vec![to, from]));
    all.push((format!("{path}.bias"), vec![to]));
}

fn conv(all: &mut Layout, path: &str, [to, from, kernel]: [u64; 3]) {
    all.push((format!("{path}.weight"), vec![to, from, kernel, kernel]));
}

fn blocks(all: &mut Layout, path: &str, stack: &Stack) {
    let width = stack.width;
    for block in 0..stack.layers {
        let path = format!("{path}.resblocks.{block}");
        norm(all, &format!("{path}.ln_1"), width);
        norm(all, &format!("{path}.ln_2"), width);
        let joined = width.saturating_mul(3);
        all.push((format!("{path}.attn.in_proj_weight"), vec![joined, width]));
        all.push((format!("{path}.attn.in_proj_bias"), vec![joined]));
        linear(all, &format!("{path}.attn.out_proj"), width, width);
        linear(all, &format!("{path}.mlp.c_fc"), width, stack.hidden);
        linear(all, &format!("{path}.mlp.c_proj"), stack.hidden, width);
    }
}
