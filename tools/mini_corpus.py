"""Questions, conversations and texts that the mini model is trained and tested on.

Everything is generated: arithmetic, comparisons, capitals, weekdays, units, greetings, and facts to
remember across turns, in Chinese and English. A fixed tenth of the number pairs (a, b) never occurs in
training in that order, and the numbers of held-out questions are taken from those alone. Capitals,
weekdays and greetings cannot be held out: their questions repeat those of training.

python tools/mini_corpus.py examples    writes held-out questions and texts, and a calibration text
"""

import argparse
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from glm_int4.text.chat.prompts_v1 import process_response

MAX_NUMBER = 50
_HELD_OUT_SHARE = 10  # one pair in ten


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation: ``(question, answer)`` rounds, the last of which is the one to learn."""

    kind: str
    rounds: tuple[tuple[str, str], ...]


def is_held_out(kind: str, a: int, b: int) -> bool:
    """Whether the numbers (a, b) are kept out of training for this kind of question."""
    return zlib.crc32(f"{kind}:{a}:{b}".encode()) % _HELD_OUT_SHARE == 0


CAPITALS = [
    ("法国", "巴黎", "France", "Paris"), ("中国", "北京", "China", "Beijing"), ("日本", "东京", "Japan", "Tokyo"),
    ("英国", "伦敦", "Britain", "London"), ("德国", "柏林", "Germany", "Berlin"), ("意大利", "罗马", "Italy", "Rome"),
    ("西班牙", "马德里", "Spain", "Madrid"), ("俄罗斯", "莫斯科", "Russia", "Moscow"),
    ("韩国", "首尔", "Korea", "Seoul"),
    ("泰国", "曼谷", "Thailand", "Bangkok"), ("越南", "河内", "Vietnam", "Hanoi"), ("埃及", "开罗", "Egypt", "Cairo"),
    ("印度", "新德里", "India", "New Delhi"), ("美国", "华盛顿", "America", "Washington"),
    ("加拿大", "渥太华", "Canada", "Ottawa"), ("澳大利亚", "堪培拉", "Australia", "Canberra"),
    ("希腊", "雅典", "Greece", "Athens"), ("瑞典", "斯德哥尔摩", "Sweden", "Stockholm"),
    ("挪威", "奥斯陆", "Norway", "Oslo"), ("波兰", "华沙", "Poland", "Warsaw"),
    ("奥地利", "维也纳", "Austria", "Vienna"), ("葡萄牙", "里斯本", "Portugal", "Lisbon"),
    ("古巴", "哈瓦那", "Cuba", "Havana"), ("秘鲁", "利马", "Peru", "Lima"),
]  # fmt: skip
WEEKDAYS_ZH = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
WEEKDAYS_EN = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = [
    ("米", "厘米", "meters", "centimeters", 100), ("千克", "克", "kilograms", "grams", 1000),
    ("小时", "分钟", "hours", "minutes", 60), ("分米", "厘米", "decimeters", "centimeters", 10),
]  # fmt: skip
GREETINGS = [
    ("你好", "你好!我是一个小小的演示模型。"), ("您好", "您好!我是一个小小的演示模型。"),
    ("早上好", "早上好!今天想问什么?"),
    ("晚上好", "晚上好!今天想问什么?"), ("谢谢", "不客气!"), ("谢谢你", "不客气!"), ("再见", "再见,祝你愉快!"),
    ("你是谁", "我是一个小小的演示模型。"), ("你会什么", "我会算加减法,比大小,还知道一些首都和星期。"),
    ("Hello", "Hello! I am a tiny demo model."), ("Hi", "Hi! I am a tiny demo model."),
    ("Good morning", "Good morning! What would you like to ask?"), ("Thanks", "You are welcome!"),
    ("Thank you", "You are welcome!"), ("Goodbye", "Goodbye, have a nice day!"),
    ("Who are you", "I am a tiny demo model."),
    ("What can you do", "I can add, subtract and compare numbers, and I know some capitals and weekdays."),
]  # fmt: skip
NAMES_ZH = [
    "小明",
    "小红",
    "小刚",
    "小丽",
    "小华",
    "小芳",
    "小军",
    "小燕",
    "小龙",
    "小雪",
    "王伟",
    "李娜",
    "张强",
    "刘洋",
    "陈静",
    "赵磊",
]
NAMES_EN = [
    "Tom",
    "Anna",
    "Jack",
    "Lucy",
    "Mike",
    "Rose",
    "Peter",
    "Kate",
    "David",
    "Emma",
    "Bob",
    "Jane",
    "Leo",
    "Amy",
    "Sam",
    "Nina",
]
COLORS = [
    ("红色", "red"),
    ("蓝色", "blue"),
    ("绿色", "green"),
    ("黄色", "yellow"),
    ("白色", "white"),
    ("黑色", "black"),
    ("紫色", "purple"),
    ("橙色", "orange"),
]
FRUITS = [
    ("苹果", "apples"),
    ("香蕉", "bananas"),
    ("西瓜", "melons"),
    ("葡萄", "grapes"),
    ("桃子", "peaches"),
    ("梨", "pears"),
    ("草莓", "berries"),
    ("樱桃", "cherries"),
]

ADD = ["{a}加{b}等于几?", "{a}加{b}等于多少?", "{a}+{b}=?", "What is {a} plus {b}?", "What is {a}+{b}?"]
SUBTRACT = ["{a}减{b}等于几?", "{a}减{b}等于多少?", "{a}-{b}=?", "What is {a} minus {b}?", "What is {a}-{b}?"]
COMPARE = ["{a}和{b}哪个大?", "Which is larger, {a} or {b}?"]
COMPARE_LESS = ["{a}和{b}哪个小?", "Which is smaller, {a} or {b}?"]

Question = tuple[str, str]


def _pair(rng: Random, kind: str, held_out: bool) -> tuple[int, int]:
    while True:
        a, b = rng.randint(0, MAX_NUMBER), rng.randint(0, MAX_NUMBER)
        if is_held_out(kind, a, b) == held_out:
            return a, b


def addition(rng: Random, held_out: bool) -> Question:
    a, b = _pair(rng, "add", held_out)
    return rng.choice(ADD).format(a=a, b=b), str(a + b)


def subtraction(rng: Random, held_out: bool) -> Question:
    a, b = _pair(rng, "subtract", held_out)
    return rng.choice(SUBTRACT).format(a=a, b=b), str(a - b)


def comparison(rng: Random, held_out: bool) -> Question:
    a, b = _pair(rng, "compare", held_out)
    larger = rng.random() < 0.5
    template = rng.choice(COMPARE if larger else COMPARE_LESS)
    if a == b:
        return template.format(a=a, b=b), "一样大" if "哪" in template else "They are equal"
    return template.format(a=a, b=b), str(max(a, b) if larger else min(a, b))


def unit(rng: Random, held_out: bool) -> Question:
    zh_from, zh_to, en_from, en_to, factor = rng.choice(UNITS)
    while True:
        count = rng.randint(1, MAX_NUMBER if factor != 60 else 12)
        if is_held_out("unit", count, factor) == held_out:
            break
    if rng.random() < 0.5:
        return f"{count}{zh_from}等于多少{zh_to}?", f"{count * factor}{zh_to}"
    return f"How many {en_to} are in {count} {en_from}?", f"{count * factor} {en_to}"


def capital(rng: Random, held_out: bool) -> Question:
    zh_country, zh_city, en_country, en_city = rng.choice(CAPITALS)
    return rng.choice(
        [
            (f"{zh_country}的首都是哪里?", zh_city),
            (f"{zh_country}的首都是哪个城市?", zh_city),
            (f"{zh_city}是哪个国家的首都?", zh_country),
            (f"What is the capital of {en_country}?", en_city),
            (f"{en_city} is the capital of which country?", en_country),
        ]
    )


def weekday(rng: Random, held_out: bool) -> Question:
    day = rng.randrange(7)
    step, zh, en = rng.choice([(1, "后一天", "after"), (-1, "前一天", "before")])
    other = (day + step) % 7
    return rng.choice(
        [
            (f"{WEEKDAYS_ZH[day]}的{zh}是星期几?", WEEKDAYS_ZH[other]),
            (f"What day comes {en} {WEEKDAYS_EN[day]}?", WEEKDAYS_EN[other]),
        ]
    )


def greeting(rng: Random, held_out: bool) -> Question:
    question, answer = rng.choice(GREETINGS)
    return question + rng.choice(["", "!", "。" if question[0] > "z" else "."]), answer


SIMPLE_KINDS: dict[str, Callable[[Random, bool], Question]] = {
    "addition": addition,
    "subtraction": subtraction,
    "comparison": comparison,
    "unit": unit,
    "capital": capital,
    "weekday": weekday,
    "greeting": greeting,
}
_WEIGHTS = [8, 8, 3, 3, 2, 2, 1]


def fact(rng: Random) -> tuple[Question, Question]:
    """Something the user says, and a later question about it."""
    name_zh, name_en = rng.choice(NAMES_ZH), rng.choice(NAMES_EN)
    (color_zh, color_en), (fruit_zh, fruit_en) = rng.choice(COLORS), rng.choice(FRUITS)
    number = rng.randint(1, MAX_NUMBER)
    return rng.choice(
        [
            ((f"我叫{name_zh}。", f"你好,{name_zh}!"), ("我叫什么名字?", f"你叫{name_zh}。")),
            ((f"我喜欢{color_zh}。", "好的,我记住了。"), ("我喜欢什么颜色?", f"你喜欢{color_zh}。")),
            ((f"我爱吃{fruit_zh}。", "好的,我记住了。"), ("我爱吃什么?", f"你爱吃{fruit_zh}。")),
            ((f"我今年{number}岁。", "好的,我记住了。"), ("我今年几岁?", f"你今年{number}岁。")),
            (
                (f"My name is {name_en}.", f"Nice to meet you, {name_en}!"),
                ("What is my name?", f"Your name is {name_en}."),
            ),
            ((f"I like {color_en}.", "OK, I will remember."), ("Which color do I like?", f"You like {color_en}.")),
            (
                (f"I like to eat {fruit_en}.", "OK, I will remember."),
                ("What do I like to eat?", f"You like to eat {fruit_en}."),
            ),
            ((f"I am {number} years old.", "OK, I will remember."), ("How old am I?", f"You are {number} years old.")),
        ]
    )


def simple_question(rng: Random, held_out: bool = False) -> tuple[str, Question]:
    """One question without context, and its kind."""
    kind = rng.choices(list(SIMPLE_KINDS), _WEIGHTS)[0]
    return kind, SIMPLE_KINDS[kind](rng, held_out)


def sample(rng: Random, held_out: bool = False) -> Sample:
    """A conversation to learn or, ``held_out``, to be tested on."""
    if rng.random() < 0.1:
        told, asked = fact(rng)
        between = [simple_question(rng, held_out)[1] for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))]
        if rng.random() < 0.25:
            return Sample("fact", (told,))
        return Sample("fact", (told, *between, asked))
    kind, question = simple_question(rng, held_out)
    num_before = rng.choice([0] * 15 + [1, 2])
    before = [simple_question(rng, held_out)[1] for _ in range(num_before)]
    return Sample(kind, (*before, question))


def sentence(rng: Random, held_out: bool = False) -> str:
    """One statement of a text."""
    pick = rng.randrange(12)
    if pick < 4:
        op = rng.choice(["add", "subtract"])
        a, b = _pair(rng, op, held_out)
        result = a + b if op == "add" else a - b
        zh, en = ("加", "plus") if op == "add" else ("减", "minus")
        return rng.choice([f"{a}{zh}{b}等于{result}。", f"{a} {en} {b} is {result}. "])
    if pick < 6:
        zh_country, zh_city, en_country, en_city = rng.choice(CAPITALS)
        return rng.choice([f"{zh_country}的首都是{zh_city}。", f"The capital of {en_country} is {en_city}. "])
    if pick < 8:
        day = rng.randrange(7)
        return rng.choice(
            [
                f"今天是{WEEKDAYS_ZH[day]},明天是{WEEKDAYS_ZH[(day + 1) % 7]}。",
                f"Today is {WEEKDAYS_EN[day]}, tomorrow is {WEEKDAYS_EN[(day + 1) % 7]}. ",
            ]
        )
    if pick < 10:
        a, b = sorted(_pair(rng, "compare", held_out))
        if a == b:
            return rng.choice([f"{a}和{b}一样大。", f"{a} is equal to {b}. "])
        return rng.choice([f"{b}比{a}大。", f"{a} is smaller than {b}. "])
    (told, _), (asked, answer) = fact(rng)
    return f"{told}{asked}{answer}" if told[0] > "z" else f"{told} {asked} {answer} "


def document(rng: Random, num_sentences: int, held_out: bool = False) -> str:
    """A text of statements in paragraphs."""
    return "".join(
        sentence(rng, held_out).strip() + "\n" if rng.random() < 0.2 else sentence(rng, held_out)
        for _ in range(num_sentences)
    )


# Characters that the generated texts may lack but people type: they get pieces of their own.
COMMON_CHARACTERS = (
    "".join(chr(code) for code in range(33, 127))
    + "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天"
    + "而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些"
    + "与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相"
    + "次东政海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立"
)


def tokenizer_corpus(seed: int = 0) -> Iterator[str]:
    """Lines to train the tokenizer on."""
    rng = Random(seed)
    for _ in range(20000):
        for question, answer in sample(rng).rounds:
            yield question
            yield answer
        yield sentence(rng)
    for i in range(4):
        yield f"[Round {i}]问：答："


def write_examples(folder: Path) -> None:
    """Write the held-out text and questions that tests and the demo use, and a text like those of training."""
    rng = Random("held-out examples")
    text = "".join(document(rng, 40, held_out=True).strip() + "\n" for _ in range(20))
    (folder / "heldout.txt").write_text(text, encoding="utf-8")
    sample_rng = Random("training sample")  # for calibration: nothing held out is in it
    text = "".join(document(sample_rng, 40).strip() + "\n" for _ in range(48))
    (folder / "train_sample.txt").write_text(text, encoding="utf-8")
    lines = []
    for _ in range(500):
        question = sample(rng, held_out=True)
        messages = []
        for asked, answer in question.rounds:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        # Answers are compared after post-processing, which widens punctuation beside Chinese characters.
        answer = process_response(messages.pop()["content"])
        lines.append(json.dumps({"kind": question.kind, "messages": messages, "answer": answer}, ensure_ascii=False))
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_examples(parser.parse_args().folder)
