from __future__ import annotations

from typing import get_args

import pytest

from instructpt.api.v1alpha1.filters import Language
from instructpt.corpus import builtin
from instructpt.corpus.text.language import LANGUAGES, UNKNOWN, language_of

SENTENCES = {
    "ar": "كان الطقس باردا في الصباح ثم أشرقت الشمس فوق المدينة القديمة.",
    "da": "Det var koldt om morgenen, og vi gik ikke ud af huset, men blev ved med at læse for børnene til aften.",
    "de": "Am Morgen war es kalt, und wir gingen mit den Kindern durch die Stadt, die noch nicht wach war.",
    "el": "Το πρωί έκανε κρύο και περπατήσαμε στην παλιά πόλη μέχρι το λιμάνι.",
    "en": "In the morning it was cold, and we walked through the old town, which was not awake yet.",
    "es": "Por la mañana hacía frío y caminamos por las calles de la ciudad, que no estaba despierta.",
    "fa": "صبح هوا سرد بود و ما در شهر قدیمی پیاده رفتیم و چای گرم نوشیدیم پیش از ظهر.",
    "fr": "Le matin il faisait froid et nous avons marché dans les rues de la ville, qui ne dormait plus.",
    "he": "בבוקר היה קר והלכנו ברחובות העיר העתיקה עד הנמל.",
    "hi": "सुबह ठंड थी और हम पुराने शहर की गलियों में पैदल चले।",
    "it": "La mattina era fredda e abbiamo camminato per le strade della città, che non era ancora sveglia.",
    "ja": "朝は寒かったので、私たちは古い町をゆっくり歩いて港まで行きました。",
    "ko": "아침에는 추웠고 우리는 오래된 도시의 거리를 걸어 항구까지 갔습니다.",
    "nl": "In de ochtend was het koud en we liepen door de straten van de stad, die nog niet wakker was.",
    "pl": "Rano było zimno i szliśmy przez ulice miasta, które nie było jeszcze na nogach, do portu.",
    "pt": "De manhã estava frio e caminhamos pelas ruas da cidade, que ainda não estava acordada, com os filhos.",
    "ru": "Утром было холодно, и мы шли по улицам старого города до самой гавани, где были лодки.",
    "sv": "På morgonen var det kallt och vi gick genom gatorna i staden, som inte hade vaknat än.",
    "th": "ตอนเช้าอากาศหนาวและเราเดินผ่านถนนของเมืองเก่าไปถึงท่าเรือ",
    "uk": "Вранці було холодно, і ми йшли вулицями старого міста до гавані, де стояли її човни.",
    "zh": "早晨很冷，我们走过老城的街道，一直走到港口，那里停着许多船。",
}


def test_the_api_offers_what_is_known() -> None:
    assert get_args(Language) == LANGUAGES == tuple(sorted(SENTENCES))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_enough(language: str) -> None:
    assert language_of(SENTENCES[language]) == language


@pytest.mark.parametrize(
    "text",
    ["", "1234 5678 !!", "Berlin", "x = f(y)", "Lorem ipsum dolor sit amet, consectetur adipiscing elit", "a b c d"],
)
def test_what_cannot_be_told_is_unknown(text: str) -> None:
    assert language_of(text) == UNKNOWN


def test_half_and_half_is_unknown() -> None:
    assert language_of(SENTENCES["ru"] + " " + SENTENCES["en"]) == UNKNOWN


def test_a_thousand_english_documents_are_never_taken_for_another_language() -> None:
    documents = [document.text for document in builtin.documents()][:1000]
    found = [language_of(text) for text in documents]
    assert len(found) == 1000
    assert set(found) <= {"en", UNKNOWN}
    assert found.count("en") >= 900
