# ruff: noqa: E501 - templates stand here as their publishers wrote them
from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jinja2
import pytest
import tokenizers
import transformers

from ortkit import BundleError, InputError
from ortkit.runtime.bundle.manifest import ChatFacts
from ortkit.runtime.text.chat_template import ChatTemplate
from ortkit.runtime.text.messages import Message
from tests import mistral

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message["
    "'role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]["
    "'content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message "
    "in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
    "roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != "
    "false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% "
    "set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token"
    " }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% "
    "set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
    "%}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    "'<start_of_turn>model\n'}}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'"
    "}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == "
    "'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_2_5 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
HELPERS = """
{# Everything that transformers adds to jinja2. #}
    {% for message in messages %}
        {% if message.content == "skip" %}{% continue %}{% endif %}
        {% if message.content == "stop" %}{% break %}{% endif %}
  {{ message | tojson }}
  {{ message.content | tojson(indent=2, sort_keys=true) }}
        {% generation %}
  <{{ message.content }}>
        {% endgeneration %}
    {% endfor %}
{{ strftime_now("%d %b %Y") }}
{{ tools is none }} {{ documents is defined }} {{ bos_token }} {{ unk_token is defined }}
"""
TEMPLATES = {
    "chatml": CHATML,
    "mistral": mistral.CHAT_TEMPLATE,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "gemma": GEMMA,
    "phi-3": PHI_3,
    "qwen-2.5": QWEN_2_5,
    "helpers": HELPERS,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def conversation(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in pairs]


CONVERSATIONS = [
    conversation(("user", "Hello")),
    conversation(("user", " Hello \n"), ("assistant", 'Hi, <b>you</b> & "me"!\n'), ("user", "Größe 🙂?")),
    conversation(("system", "Be brief."), ("user", "Hello")),
    conversation(("system", "Be\nbrief. "), ("user", "1"), ("assistant", " 2 "), ("user", "skip")),
    conversation(("user", "1"), ("user", "2")),
    conversation(("assistant", "1"), ("user", "stop"), ("user", "after")),
    conversation(("user", "1"), ("assistant", "2")),
]


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_transformers_renders(name: str, reference: transformers.PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(ChatFacts(TEMPLATES[name], TOKENS))
    rendered = refused = 0
    for messages, for_answer in itertools.product(CONVERSATIONS, [True, False]):
        records = [{"role": message.role, "content": message.content} for message in messages]
        expected = refusal = None
        try:
            expected = reference.apply_chat_template(
                records, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=for_answer
            )
        except jinja2.TemplateError as error:
            refusal = str(error)
        if refusal is None:
            assert template.render(messages, for_answer=for_answer) == expected
            rendered += 1
        else:
            with pytest.raises(InputError) as caught:
                template.render(messages, for_answer=for_answer)
            assert caught.value.message == f"the model's chat template refuses these messages: {refusal}"
            refused += 1
    assert rendered
    assert bool(refused) == (name in {"mistral", "llama-2", "gemma"})


def test_the_message_of_a_template_that_refuses_is_shown() -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(ChatFacts(GEMMA, TOKENS)).render(CONVERSATIONS[2])

    assert caught.value.message == "the model's chat template refuses these messages: System role not supported"
    assert caught.value.hint == "their roles are `system`, `user`"


def test_an_unsupported_role() -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(ChatFacts(CHATML, TOKENS)).render(conversation(("user", "1"), ("narrator", "2")))

    assert caught.value.message == ("message 1 has the role `narrator`, which the model's chat template does not name")
    assert caught.value.hint == "the usual roles are `system`, `user`, `assistant`"


def test_a_role_that_the_template_names_is_known() -> None:
    text = ChatTemplate(ChatFacts(QWEN_2_5, TOKENS)).render(conversation(("user", "1"), ("tool", "2")))

    assert "<tool_response>\n2\n</tool_response>" in text


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(BundleError, match="the chat template uses a forbidden operation: "):
        ChatTemplate(ChatFacts(attack, {})).render(CONVERSATIONS[0])


def test_a_template_that_jinja_cannot_read() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts("ok\n{% for %}", {}))

    assert (
        caught.value.message
        == "the chat template is not valid: Expected an expression, got 'end of statement block' in line 2"
    )


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "it is nested too deeply, or too large"),
        (
            "".join(f"{{% for a{number} in [1] %}}" for number in range(30)) + "{% endfor %}" * 30,
            "too many statically nested blocks",
        ),
        ("{{ " + "9" * 5000 + " }}", "Exceeds the limit"),
    ],
)
def test_a_template_that_exceeds_pythons_parser(template: str, problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(template, {}))

    assert caught.value.message.startswith(f"the chat template is not valid: {problem}")
    assert caught.value.exit_code == 7


def broken(template: str, *messages: Message) -> str:
    """The message of the BundleError that a template ends in."""
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(template, {})).render(messages or CONVERSATIONS[0])
    assert caught.value.exit_code == 7
    return caught.value.message


@pytest.mark.parametrize(
    "template", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% block a %}{{ self.a() }}{% endblock %}"]
)
def test_a_template_without_an_end(template: str) -> None:
    assert broken(template) == "the chat template recurses without end, or takes all memory"


DOUBLED = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = VALUE %}{% endfor %}{{ ns.x }}"
STEPS = "the chat template takes more than 10782 steps"
CHARACTERS = "the chat template makes more than 2001280 characters"
WIDTH = "the chat template has a width or a number of more than 10000"
NOT_ALLOWED = "the chat template uses a forbidden operation: "
LONG = "{% set x = 'ab' * 500000 %}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", STEPS),
        ("{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}", STEPS),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ loop.last }}{% endfor %}{% endfor %}", STEPS),
        ("{% for a in [1] recursive %}{% if loop.depth < 99 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}", STEPS),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", STEPS),
        ("{% for a in range(99999) %}{{ range(99999)|map('string')|join|length }}{% endfor %}", STEPS),
        (DOUBLED.replace("VALUE", "[ns.x, ns.x]"), STEPS),
        (DOUBLED.replace("VALUE", "(ns.x, ns.x)"), STEPS),
        (DOUBLED.replace("VALUE", "{1: ns.x, 2: ns.x}"), STEPS),
        (DOUBLED.replace("VALUE", "ns.x + ns.x"), STEPS),
        (DOUBLED.replace("VALUE", "ns.x ~ ns.x"), CHARACTERS),
        (DOUBLED.replace("VALUE", "dict(a=ns.x, b=ns.x)"), STEPS),
        ("{% macro f() %}{{ f(varargs, varargs) }}{% endmacro %}{{ f(1) }}", STEPS),
        (LONG + "{% for a in range(99) %}{{ x }}{% endfor %}", CHARACTERS),
        (LONG + "{% set y %}{% for a in range(99) %}{{ x }}{% endfor %}{% endset %}", CHARACTERS),
        (LONG + "{{ ([x] * 999)|join }}", CHARACTERS),
        (LONG + "{{ range(99999)|map(attribute='a', default=x)|join }}", CHARACTERS),
        (LONG + "{{ x.replace('a', x) }}", CHARACTERS),
        (LONG + "{{ x|replace('', x) }}", CHARACTERS),
        (LONG + "{{ x.join(x) }}", CHARACTERS),
        (LONG + "{{ ('{0}' * 9999).format(x) }}", CHARACTERS),
        (LONG + "{{ ('%(a)s' * 9999)|format(a=x) }}", CHARACTERS),
        (LONG + "{{ ('%(a)s' * 9999) % {'a': x} }}", CHARACTERS),
        (LONG + "{{ x.split('a') }}", "the chat template takes more than"),
        (LONG + "{{ x" + " ~ x" * 20000 + " }}", CHARACTERS),
        (LONG + "".join(f"{{% set y{number} = x[1:] %}}" for number in range(99)), CHARACTERS),
        (LONG + "{{ x|list|length }}", STEPS),
        (LONG + "{{ x.encode('idna') }}", NOT_ALLOWED + "an encoding that is not supported"),
        ("{{ 'a' * 10**10 }}", CHARACTERS),
        ("{{ 10**10 * ['a'] }}", CHARACTERS),
        ("{{ ('a'|safe) * 10**10 }}", CHARACTERS),
        ("{{ '%10000000000d' % 1 }}", WIDTH),
        ("{{ '%.10000000000f' % 1 }}", WIDTH),
        ("{{ '%*d' % (10**10, 1) }}", NOT_ALLOWED + "a format with its width as an argument"),
        ("{{ '{:10000000000}'.format(1) }}", WIDTH),
        ("{{ '{:{}}'.format(1, 10**10) }}", WIDTH),
        ("{{ ['a']|map('center', 10**10)|join }}", WIDTH),
        ("{{ 'a'.ljust(10**10) }}", WIDTH),
        ("{% filter indent(10**10) %}a{% endfilter %}", WIDTH),
        ("{{ [1]|batch(10**10, 1)|list }}", WIDTH),
        ("{{ 5|round(10**9, 'floor') }}", WIDTH),
        ("{{ [1]|tojson(indent=10**10) }}", WIDTH),
        ("{{ (10**9999) ** 9999 }}", "the chat template computes a number of more than 65536 bits"),
        ("{{ (1).to_bytes(10**10, 'big') }}", NOT_ALLOWED + "the method `to_bytes` is not supported"),
        ("{{ ([[]] * 99)|sum(start=[]) }}", NOT_ALLOWED + "`sum` of anything but numbers"),
        ("{{ dict.update(dict(), a=1) }}", NOT_ALLOWED + "access to attribute 'update' of 'type' object is unsafe."),
    ],
)
def test_a_template_that_asks_for_too_much(template: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller bounds, which are reached sooner."""
    monkeypatch.setattr("ortkit.runtime.text.template_sandbox.STEPS", 10_000)
    monkeypatch.setattr("ortkit.runtime.text.template_sandbox.CHARACTERS", 2_000_000)

    assert broken(template).startswith(problem)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 262926 steps",
        ),
        ("{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "makes more than 16778496 characters"),
    ],
)
def test_the_bounds_themselves(template: str, problem: str) -> None:
    assert broken(template) == f"the chat template {problem}"


def test_a_template_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ortkit.runtime.text.template_sandbox.SECONDS", 0.2)

    assert broken("{% for i in range(99999) %}{{ range(99999)|max }}{% endfor %}") == (
        "the chat template takes more than 0.2 s"
    )


def test_a_template_of_endless_text() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts("{{ a }}" * 20_000, {}))

    assert caught.value.message == "the chat template has 140000 characters; the limit is 131072"


def test_a_long_conversation_is_within_the_limits() -> None:
    """Bounds grow with the messages, even for a template that looks at all of them for each."""
    template = (
        "{% set ns = namespace(text='') %}{% for message in messages %}{% set before = messages[:loop.index]|list %}"
        "{% set ns.text = ns.text + message.content.strip() %}{% endfor %}{{ ns.text }}"
    )
    messages = [Message("user", "word " * 400)] * 500

    assert len(ChatTemplate(ChatFacts(template, {})).render(messages)) == 500 * 1999


def test_a_conversation_at_once_with_one_that_is_refused() -> None:
    """Each thread has its own budget."""
    good, bad = ChatTemplate(ChatFacts(CHATML, TOKENS)), ChatTemplate(ChatFacts("{{ 'a' * 10**10 }}", {}))

    def render(number: int) -> str:
        try:
            return (bad if number % 2 else good).render(CONVERSATIONS[0])
        except BundleError as error:
            return error.message

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(render, range(40)))
    assert found == [good.render(CONVERSATIONS[0]), "the chat template makes more than 16778496 characters"] * 20


OFFERED = """
{% macro card(title, tags=('a',)) %}[{{ title|upper }}:{{ tags|join('/') }}{{ caller() if caller else '' }}{{ varargs }}]{% endmacro %}
{{ card('x') }}{{ card('y', ['b', 'c'], 1, 2) }}{% call card('z') %}!{% endcall %}
{% set ns = namespace(seen=[], n=0) %}
{% for m in messages recursive %}{% set ns.seen = ns.seen + [m.role] %}{% set ns.n = ns.n + 2 ** 3 % 5 // 1 %}{{ loop.index }}/{{ loop.length }} {{ loop.cycle('odd', 'even') }} {{ loop.previtem.role if not loop.first }}{% else %}none{% endfor %}
{{ ns.seen }} {{ ns.n }} {{ ns.seen|unique|list }} {{ messages|map(attribute='role')|join(', ') }}
{{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'equalto', 'user')|map(attribute='content')|list }}
{{ nothing|default('d') }}{{ nothing }}{{ nothing|string }}{{ nothing|join }}{{ nothing|list }}{% for x in nothing %}{% else %}empty{% endfor %}
{{ 'a,b;c'.split(',')|last }} {{ ' x '.strip() }}{{ 'Abc'.lower().replace('b', 'BB').startswith('aBB') }} {{ 'ab'.center(6, '*') }} {{ '-'.join(['1', '2']) }}
{{ '%s is %5.2f%%' % ('x', 2.5) }} {{ '{:>4}|{a!r}'.format(7, a='q') }} {{ '%s'|format('f') }} {{ '{a}'.format_map({'a': 1}) }}
{{ {'b': 1, 'a': [1, {'c': none}]}|tojson }} {{ {'b': 1, 'a': 'é<'}|tojson(indent=2, sort_keys=true) }} {{ {'b': 1, 'a': 2}|dictsort }} {{ {'k': 'v'}.items()|list }} {{ [3, 1, 2]|sort(reverse=true) }}
{{ 'a\nb'|indent(2) }} {{ 'some words here'|title|truncate(11) }} {{ 'word'[1:3] ~ 'é'.encode('utf-8').decode() ~ ('<'|safe) }} {{ '<b>'|e }} {{ 3.7|round|int }} {{ [1, 2, 3]|sum }} {{ [1, 2, 3]|batch(2, 0)|list }} {{ 'abc'|reverse }} {{ 'a b'|wordcount }} {{ [1, 2, 3][::-1] }}
{{ 'x' ~ 1 ~ none }} {{ 1 if messages is iterable and messages is not string }} {{ 'user' in ns.seen }} {{ dict(a=1) }} {{ range(3)|list }} {{ joiner('|')() }}{{ cycler(1, 2).next() }}
{% set block %}  {{ 'captured' }}  {% endset %}{{ block|trim }}{% filter upper %}filtered{% endfilter %}
"""


def test_supported_features_work_as_in_transformers(reference: transformers.PreTrainedTokenizerFast) -> None:
    records = [{"role": message.role, "content": message.content} for message in CONVERSATIONS[1]]

    expected = reference.apply_chat_template(records, chat_template=OFFERED, tokenize=False)

    assert ChatTemplate(ChatFacts(OFFERED, TOKENS)).render(CONVERSATIONS[1], for_answer=False) == expected


def test_a_template_that_writes_half_a_character() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(r"{{ 'a\ud800' }}", {})).render(CONVERSATIONS[0])

    assert caught.value.message == (
        "the output of the chat template is not valid Unicode: surrogates not allowed at character 1"
    )
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    "template", ["{{ messages[5].content.strip() }}", "{{ 1 + messages }}", "{{ 1 / 0 }}", "{{ cycler() }}"]
)
def test_a_template_that_fails_on_these_messages(template: str) -> None:
    with pytest.raises(InputError, match="the model's chat template cannot render these messages: "):
        ChatTemplate(ChatFacts(template, {})).render(CONVERSATIONS[0])


@pytest.mark.parametrize("said", ["'a' * 10**6", "['a' * 10**6]"])
def test_long_messages_of_a_template_are_shortened(said: str) -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(ChatFacts("{{ raise_exception(" + said + ") }}", {})).render(CONVERSATIONS[0])

    assert len(caught.value.message) < 2000


def test_jinja2_is_imported_only_for_chat_templates() -> None:
    code = "import sys, ortkit.runtime.text.chat_template; assert 'jinja2' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
