"""Filters and sort orders of a search as SQL over Argilla's tables; every value is a bound parameter.

Semantics are those of Argilla's engine for Elasticsearch (`argilla_server/search_engine/commons.py`): a filter on
responses holds if one response of the user (or of anybody, for the team) satisfies it; `pending` means that there is
no response of any status; a property with several values matches if one does; records without a value come last in
both directions. Text, ranking and span questions are not filtered by: Elasticsearch keeps no index of them.

Deviations, each where Elasticsearch answers with a server's error: words in responses of the team sort by the first
(descending: the last) instead of not at all; a value of the wrong kind is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from argilla_server.enums import MetadataPropertyType, QuestionType, ResponseStatusFilter, SortOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import MetadataProperty, Question, Record, Response, Suggestion, User
from argilla_server.search_engine.base import (
    AndFilter,
    MetadataFilterScope,
    Order,
    RangeFilter,
    RecordFilterScope,
    ResponseFilterScope,
    SuggestionFilterScope,
    TermsFilter,
)
from sqlalchemy import (
    ColumnElement,
    String,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    not_,
    or_,
    select,
    true,
    type_coerce,
)

from . import values

Condition: TypeAlias = ColumnElement[bool]
Comparison: TypeAlias = Callable[[Any], Condition]
"""Makes the condition that one value of a property satisfies a filter."""

KEYWORD_QUESTIONS = {QuestionType.label_selection, QuestionType.multi_label_selection}
DATES = {"inserted_at": Record.inserted_at, "updated_at": Record.updated_at}


@dataclass(frozen=True)
class Names:
    """The questions and metadata properties of a dataset, by name."""

    questions: dict[str, Question]
    properties: dict[str, MetadataProperty]

    def question(self, name: str) -> Question:
        """Return a question.

        Raises:
            UnprocessableEntityError: the dataset has none of that name.
        """
        if name not in self.questions:
            raise UnprocessableEntityError(f"the dataset has no question {values.shown(name)}")
        return self.questions[name]

    def property(self, name: str) -> MetadataProperty:
        """Return a metadata property.

        Raises:
            UnprocessableEntityError: the dataset has none of that name.
        """
        if name not in self.properties:
            raise UnprocessableEntityError(f"the dataset has no metadata property {values.shown(name)}")
        return self.properties[name]


def condition(filter_: Any, names: Names) -> Condition:
    """Return a filter as a condition on `records`.

    Raises:
        UnprocessableEntityError: a value of the wrong kind, or a scope that can't be filtered by.
    """
    if isinstance(filter_, AndFilter):
        return and_(true(), *(condition(each, names) for each in filter_.filters))
    scope = filter_.scope
    if isinstance(scope, RecordFilterScope):
        return _record_condition(filter_, str(scope.property))
    if isinstance(scope, MetadataFilterScope):
        return _metadata_condition(filter_, names.property(scope.metadata_property))
    if isinstance(scope, SuggestionFilterScope):
        return _suggestion_condition(filter_, names.question(scope.question), _suggestion_property(scope))
    if scope.question:
        return _answer_condition(filter_, names.question(scope.question), scope.user)
    if scope.property == "status" and isinstance(filter_, TermsFilter):
        return _response_status_condition(filter_.values, scope.user)
    raise UnprocessableEntityError("responses are filtered by a question, or by the terms of their status")


def order(order_: Order, names: Names) -> ColumnElement[Any]:
    """Return a sort order as an SQL expression; records without a value come last.

    Raises:
        UnprocessableEntityError: a scope that can't be sorted by.
    """
    descending = order_.order == SortOrder.desc
    scope = order_.scope
    if isinstance(scope, RecordFilterScope):
        key = _record_value(str(scope.property))
    elif isinstance(scope, MetadataFilterScope):
        key = _metadata_key(names.property(scope.metadata_property), descending)
    elif isinstance(scope, SuggestionFilterScope):
        key = _suggestion_key(names.question(scope.question), _suggestion_property(scope), descending)
    else:
        key = _response_key(scope, names, descending)
    return (key.desc() if descending else key.asc()).nulls_last()


# --- what one value has to satisfy


def _comparison(filter_: TermsFilter | RangeFilter, read: Callable[[object], Any]) -> Comparison:
    if isinstance(filter_, TermsFilter):
        terms = [read(value) for value in filter_.values]
        return lambda value: value.in_(terms)
    bounds = [None if bound is None else read(bound) for bound in (filter_.ge, filter_.le)]
    return lambda value: _between(value, *bounds)


def _between(value: Any, low: Any, high: Any) -> Condition:
    return and_(true(), *([] if low is None else [value >= low]), *([] if high is None else [value <= high]))


# --- records


def _record_value(property_: str) -> ColumnElement[Any]:
    if property_ in DATES:
        return DATES[property_]
    if property_ == "id":
        return type_coerce(Record.id, String)
    return type_coerce({"status": Record.status, "external_id": Record.external_id}[property_], String)


def _record_condition(filter_: TermsFilter | RangeFilter, property_: str) -> Condition:
    if property_ in DATES:
        return _date_condition(filter_, DATES[property_])
    read = values.record_id if property_ == "id" else values.keyword
    return _comparison(filter_, read)(_record_value(property_))


def _date_condition(filter_: TermsFilter | RangeFilter, column: Any) -> Condition:
    if isinstance(filter_, TermsFilter):
        return or_(
            false(),
            *(
                _between(column, values.moment(value, latest=False), values.moment(value, latest=True))
                for value in filter_.values
            ),
        )
    low = None if filter_.ge is None else values.moment(filter_.ge, latest=False)
    high = None if filter_.le is None else values.moment(filter_.le, latest=True)
    return _between(column, low, high)


# --- metadata


def _path(name: str) -> str:
    return f'$."{name}"'


def _text(each: Any) -> ColumnElement[str]:
    """Return an element of JSON as the word that is kept for it."""
    return case((each.c.type == "true", "true"), (each.c.type == "false", "false"), else_=cast(each.c.value, String))


def _elements(column: Any, path: str | None = None) -> Any:
    """Return the table of a JSON value's elements; a single value is its own only element."""
    call = func.json_each(column) if path is None else func.json_each(column, path)
    return call.table_valued("value", "type", name=None)


def metadata_elements(property_: MetadataProperty) -> tuple[Any, ColumnElement[Any]]:
    """Return the table of a metadata property's values in a record, and its column in the property's own kind."""
    each = _elements(Record.metadata_, _path(property_.name))
    return each, _text(each) if property_.type == MetadataPropertyType.terms else each.c.value


def _metadata_condition(filter_: TermsFilter | RangeFilter, property_: MetadataProperty) -> Condition:
    if property_.type == MetadataPropertyType.terms:
        each, word = metadata_elements(property_)
        holds = _comparison(filter_, values.keyword)(word)
        return exists(select(1).select_from(each).where(each.c.type != "null", holds))
    return _comparison(filter_, values.number)(_metadata_number(property_))


def _metadata_number(property_: MetadataProperty) -> ColumnElement[Any]:
    return func.json_extract(Record.metadata_, _path(property_.name))


def _metadata_key(property_: MetadataProperty, descending: bool) -> ColumnElement[Any]:
    if property_.type != MetadataPropertyType.terms:
        return _metadata_number(property_)
    each, word = metadata_elements(property_)
    return select(_extreme(descending)(word)).select_from(each).where(each.c.type != "null").scalar_subquery()


def _extreme(descending: bool) -> Callable[[Any], ColumnElement[Any]]:
    return func.max if descending else func.min


# --- suggestions


def _suggestion_property(scope: SuggestionFilterScope) -> str:
    return "value" if scope.property in {None, "None"} else str(scope.property)


def _suggestion_condition(filter_: TermsFilter | RangeFilter, question: Question, property_: str) -> Condition:
    if property_ == "value" and not _is_indexed(question):
        return false()
    this = Suggestion.question_id == question.id
    if property_ in {"agent", "type"}:
        column = type_coerce(getattr(Suggestion, property_), String)
        return Record.id.in_(select(Suggestion.record_id).where(this, _comparison(filter_, values.keyword)(column)))
    each = _elements(getattr(Suggestion, property_))
    numeric = property_ == "score" or question.type == QuestionType.rating
    read, value = (values.number, each.c.value) if numeric else (values.keyword, _text(each))
    holds = _comparison(filter_, read)(value)
    return Record.id.in_(select(Suggestion.record_id).select_from(Suggestion).join(each, true()).where(this, holds))


def _suggestion_key(question: Question, property_: str, descending: bool) -> ColumnElement[Any]:
    of_record = and_(Suggestion.question_id == question.id, Suggestion.record_id == Record.id)
    if property_ in {"agent", "type"}:
        column = type_coerce(getattr(Suggestion, property_), String)
        return select(column).where(of_record).correlate(Record).scalar_subquery()
    if property_ == "value":
        _check_indexed(question)
    each = _elements(getattr(Suggestion, property_))
    numeric = property_ == "score" or question.type == QuestionType.rating
    value = each.c.value if numeric else _text(each)
    found = select(_extreme(descending)(value)).select_from(Suggestion).join(each, true())
    return found.where(of_record, each.c.type != "null").correlate(Record).scalar_subquery()


def _is_indexed(question: Question) -> bool:
    return question.type in KEYWORD_QUESTIONS or question.type == QuestionType.rating


def _check_indexed(question: Question) -> None:
    if not _is_indexed(question):
        raise UnprocessableEntityError(
            f"records can't be sorted by {question.name!r}: a question of the type {question.type.value} has no order"
        )


# --- responses


def _by(user: User | None) -> list[Condition]:
    return [] if user is None else [Response.user_id == user.id]


def _answers(question: Question) -> Any:
    return _elements(Response.values, f'$."{question.name}".value')


def _answer_condition(filter_: TermsFilter | RangeFilter, question: Question, user: User | None) -> Condition:
    if not _is_indexed(question):
        return false()
    each = _answers(question)
    numeric = question.type == QuestionType.rating
    read, value = (values.number, each.c.value) if numeric else (values.keyword, _text(each))
    holds = _comparison(filter_, read)(value)
    return Record.id.in_(select(Response.record_id).select_from(Response).join(each, true()).where(*_by(user), holds))


def _response_status_condition(statuses: Sequence[Any], user: User | None) -> Condition:
    wanted = {str(status) for status in statuses}
    parts: list[Condition] = []
    if ResponseStatusFilter.pending.value in wanted:
        parts.append(not_(Record.id.in_(select(Response.record_id).where(*_by(user)))))
        wanted.remove(ResponseStatusFilter.pending.value)
    if wanted:
        of_status = type_coerce(Response.status, String).in_(sorted(wanted))
        parts.append(Record.id.in_(select(Response.record_id).where(*_by(user), of_status)))
    return or_(false(), *parts)


def _response_key(scope: ResponseFilterScope, names: Names, descending: bool) -> ColumnElement[Any]:
    of_record = [Response.record_id == Record.id, *_by(scope.user)]
    if scope.question is None:
        if scope.property != "status":
            raise UnprocessableEntityError("responses are sorted by a question, or by their status")
        status = _extreme(descending)(type_coerce(Response.status, String))
        return select(status).where(*of_record).correlate(Record).scalar_subquery()
    question = names.question(scope.question)
    _check_indexed(question)
    each = _answers(question)
    rating = question.type == QuestionType.rating
    value = func.avg(each.c.value) if rating else _extreme(descending)(_text(each))
    found = select(value).select_from(Response).join(each, true())
    return found.where(*of_record, each.c.type != "null").correlate(Record).scalar_subquery()
